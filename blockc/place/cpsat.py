"""The assignment as a constraint program (CP-SAT): fewest devices, then the lowest peak.

In: sizes, a greedy assignment as a hint. Out: an assignment with a proven bound, INFEASIBLE, or neither. Invariant:
one worker, a fixed seed, deterministic time, sorted input: the same problem gives the same answer with one version of
the solver. Its presolve can claim INFEASIBLE wrongly in ortools 9.15 (google/or-tools#5274), so that claim is only
believed if a solve without presolve agrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from blockc.place.greedy import Assignment
from blockc.place.sizes import Sizes, kv_pages

# Observed: 0.25 to 0.5 units of deterministic time a second. Too few units end a solve early, never late.
_UNITS_PER_S = 0.3
# Beyond these the model takes longer to build than greedy plans are short of optimal.
_MAX_DEVICES = 16
_MAX_PAIRS = 4_000
# Value precedence among identical devices takes chains x chains x devices literals.
_MAX_PRECEDENCE_CHAINS = 64
_PEAK_SCALE = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """``assignment`` None: none was found; then ``infeasible`` says whether there is none.

    ``devices_bound``: no assignment uses fewer. ``proven``: neither fewer devices nor a lower peak is possible.
    """

    assignment: Assignment | None
    devices_bound: int
    infeasible: bool
    proven: bool


def fits_solver(sizes: Sizes) -> bool:
    """Whether the flat model is worth building."""
    devices, chains = len(sizes.problem.devices), len(sizes.problem.chains)
    return devices <= _MAX_DEVICES and devices * chains <= _MAX_PAIRS


def solver_version() -> str:
    """What goes into the plan: plans are reproducible within one version only."""
    import ortools

    return f"ortools {ortools.__version__}"


def solve(sizes: Sizes, *, hint: Assignment | None, devices_bound: int) -> Solution:
    """Minimise devices, then the peak. ``devices_bound`` is a bound known before."""
    best, bound, proven = hint, devices_bound, True
    if hint is None or len(set(hint)) > bound:
        model = _Model(sizes, least_devices=bound)
        model.minimise_devices()
        outcome = model.run(hint)
        if outcome.infeasible and hint is None:
            # What a solve without presolve finds instead counts; a claim against a known plan never does.
            outcome = model.run(hint, presolve=False)
        if outcome.assignment is None and hint is None:
            return Solution(assignment=None, devices_bound=bound, infeasible=outcome.infeasible, proven=False)
        if outcome.assignment is not None:
            best = outcome.assignment
            bound = max(bound, outcome.bound)
        proven = best is not None and len(set(best)) <= bound
    assert best is not None
    model = _Model(sizes, least_devices=bound, most_devices=len(set(best)))
    model.minimise_peak()
    outcome = model.run(best)
    if outcome.assignment is not None:
        best = outcome.assignment
    return Solution(
        assignment=best,
        devices_bound=bound,
        infeasible=False,
        proven=proven and outcome.assignment is not None and outcome.optimal,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    assignment: Assignment | None
    bound: int
    optimal: bool
    infeasible: bool


class _Model:
    """``x[c][d]``: chain c runs on device d; ``use[d]``: device d runs any chain; ``used[d]``: its bytes in units."""

    def __init__(self, sizes: Sizes, *, least_devices: int, most_devices: int | None = None) -> None:
        from ortools.sat.python import cp_model

        self.cp = cp_model
        self.model: Any = cp_model.CpModel()
        self.sizes = sizes
        self.problem = sizes.problem
        self.chains = range(len(self.problem.chains))
        self.devices = range(len(self.problem.devices))
        # Whole numbers of units: bytes where they are small, so that tests are exact; else parts of a kilobyte.
        largest = max(device.offered_bytes for device in self.problem.devices)
        self.unit_bytes = max(1, 1 << max(0, largest.bit_length() - 31))
        self.x = [[self.model.new_bool_var(f"x{c}_{d}") for d in self.devices] for c in self.chains]
        self.use = [self.model.new_bool_var(f"use{d}") for d in self.devices]
        self.used = [self._memory(device) for device in self.devices]
        for chain in self.chains:
            self.model.add_exactly_one(self.x[chain])
            for device in self.devices:
                self.model.add_implication(self.x[chain][device], self.use[device])
        self.model.add(sum(self.use) >= min(least_devices, len(self.devices)))
        if most_devices is not None:
            self.model.add(sum(self.use) <= most_devices)
        self._break_symmetry()

    def minimise_devices(self) -> None:
        """Objective 1."""
        self.model.minimize(sum(self.use))

    def minimise_peak(self) -> None:
        """Objective 2: the busiest device by rate if every chain's is known, else the fullest by bytes."""
        rates = [chain.rate_rps for chain in self.problem.chains]
        if all(rate is not None for rate in rates) and any(rates):
            weights = [max(1, self.sizes.weights_bytes([chain])) for chain in self.chains]
            loads = [(rate or 0) * weight for rate, weight in zip(rates, weights, strict=True)]
            total = sum(loads)
            shares = [int(load * _PEAK_SCALE / total) for load in loads]
            peak = self.model.new_int_var(0, _PEAK_SCALE * 2, "peak")
            for device in self.devices:
                self.model.add(peak >= sum(shares[c] * self.x[c][device] for c in self.chains))
        else:
            peak = self.model.new_int_var(0, _PEAK_SCALE, "peak")
            for device in self.devices:
                offered = max(1, self.problem.devices[device].offered_bytes // self.unit_bytes)
                self.model.add(peak * offered >= self.used[device] * _PEAK_SCALE)
        self.model.minimize(peak)

    def run(self, hint: Assignment | None, *, presolve: bool = True) -> _Outcome:
        """Solve. A solution that does not hold by our own sums is none."""
        self.model.clear_hints()
        if hint is not None:
            for chain in self.chains:
                for device in self.devices:
                    self.model.add_hint(self.x[chain][device], hint[chain] == device)
        solver = self.cp.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = self.problem.seed
        solver.parameters.max_deterministic_time = float(self.problem.solver_time_limit_s) * _UNITS_PER_S
        solver.parameters.cp_model_presolve = presolve
        status = solver.solve(self.model)
        if status not in (self.cp.OPTIMAL, self.cp.FEASIBLE):
            infeasible = status == self.cp.INFEASIBLE
            return _Outcome(assignment=None, bound=0, optimal=False, infeasible=infeasible)
        assignment = tuple(
            next(device for device in self.devices if solver.boolean_value(self.x[chain][device]))
            for chain in self.chains
        )
        if not holds(self.sizes, assignment):
            return _Outcome(assignment=None, bound=0, optimal=False, infeasible=False)
        bound = -int(-solver.best_objective_bound // 1)
        return _Outcome(assignment=assignment, bound=bound, optimal=status == self.cp.OPTIMAL, infeasible=False)

    def _memory(self, device: int) -> Any:
        """The device's least layout as an expression, kept below what it offers."""
        terms: list[Any] = [self._sides(device)]
        turning: list[tuple[int, Any]] = []
        for number, bundle in enumerate(self.sizes.bundles):
            resident = self.model.new_bool_var(f"bundle{number}_{device}")
            for chain in sorted(bundle.chains):
                self.model.add_implication(self.x[chain][device], resident)
            if bundle.turns:
                turning.append((self._units(bundle.nbytes), resident))
            else:
                terms.append(self._units(bundle.nbytes) * resident)
        terms.append(self._blocks(turning, device))
        gathers: list[tuple[int, int]] = [(0, c) for c in self.chains]
        for index, group in enumerate(self.problem.groups):
            pool = kv_pages(group, 1)
            spare_bytes = self.problem.spare_bytes
            users = [(self.sizes.pages[c][index], c) for c in self.chains if index in self.sizes.pages[c]]
            terms.append(self._maximum([(pages * pool.page_bytes, c) for pages, c in users], device, f"kv{index}"))
            gathers += [(max(0, pages * pool.layer_page_bytes - spare_bytes), c) for pages, c in users]
        terms.append(self._maximum(gathers, device, "gather"))
        activations = [(self.sizes.activation_bytes[c], c) for c in self.chains]
        terms.append(self._maximum(activations, device, "activation"))
        used = sum(terms)
        self.model.add(
            used <= max(-1, self.problem.devices[device].offered_bytes // self.unit_bytes) * self.use[device]
        )
        return used

    def _sides(self, device: int) -> Any:
        """What is resident of the sides of the device's chains."""
        sides = [self._units(chain.side_bytes) for chain in self.problem.chains]
        total = sum(nbytes * self.x[c][device] for c, nbytes in enumerate(sides))
        limit = self.problem.sides_limit_bytes
        if limit is None or sum(sides) <= self._units(limit):
            return total
        resident = self.model.new_int_var(0, self._units(limit), f"sides_{device}")
        self.model.add_min_equality(resident, [total, self._units(limit)])
        return resident

    def _blocks(self, turning: Sequence[tuple[int, Any]], device: int) -> Any:
        """What is resident of blocks that may take turns, with what reading them takes (`sizes.limited_blocks`)."""
        total = sum(nbytes * resident for nbytes, resident in turning)
        limit, reading = self.problem.blocks_limit_bytes, self._units(self.problem.blocks_reading_bytes)
        if not turning or limit is None:
            return total
        some = self.model.new_bool_var(f"blocks_some_{device}")
        for _, resident in turning:
            self.model.add_implication(resident, some)
        if sum(nbytes for nbytes, _ in turning) + reading <= self._units(limit):
            return total + reading * some
        resident = self.model.new_int_var(0, self._units(limit), f"blocks_{device}")
        self.model.add_min_equality(resident, [total + reading * some, self._units(limit)])
        return resident

    def _maximum(self, amounts: Sequence[tuple[int, int]], device: int, name: str) -> Any:
        """The largest amount of bytes that a chain on the device asks for: one literal per distinct step."""
        steps = sorted({nbytes for nbytes, _ in amounts if nbytes})
        terms: list[Any] = []
        below = 0
        for nbytes in steps:
            reached = self.model.new_bool_var(f"{name}_{nbytes}_{device}")
            for asked, chain in amounts:
                if asked >= nbytes:
                    self.model.add_implication(self.x[chain][device], reached)
            terms.append((self._units(nbytes) - self._units(below)) * reached)
            below = nbytes
        return sum(terms)

    def _break_symmetry(self) -> None:
        """Among identical devices: used ones first, and in the order of the first chain that each runs."""
        blocks: dict[tuple[str, int, int], list[int]] = {}
        for index, device in enumerate(self.problem.devices):
            blocks.setdefault((device.kind, device.memory_bytes, device.reserve_bytes), []).append(index)
        for block in blocks.values():
            for before, after in pairwise(block):
                self.model.add_implication(self.use[after], self.use[before])
                if len(self.chains) > _MAX_PRECEDENCE_CHAINS:
                    continue
                for chain in self.chains:
                    earlier = [self.x[other][before] for other in range(chain)]
                    self.model.add_bool_or([*earlier, self.x[chain][after].negated()])

    def _units(self, nbytes: int) -> int:
        return -(-nbytes // self.unit_bytes)


def holds(sizes: Sizes, assignment: Assignment) -> bool:
    """Whether every device's least layout fits what it offers."""
    return all(
        sizes.least([chain for chain, place in enumerate(assignment) if place == device]).used_bytes
        <= entry.offered_bytes
        for device, entry in enumerate(sizes.problem.devices)
        if device in assignment
    )
