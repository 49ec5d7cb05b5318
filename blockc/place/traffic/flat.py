"""Which cell has what, exactly: a constraint program (CP-SAT) for clusters of few devices.

In: a packing and one that holds, as a hint. Out: a packing with fewer devices or of lower cost, or with as many and
less of what else the spec wants little of, and what is proven. Invariant: one worker, a fixed seed, deterministic
time, sorted input; what the solver claims is only believed if it holds by our own sums, and INFEASIBLE only of what no
packing is known for (ortools 9.15: google/or-tools#5274).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from blockc.place.traffic.goals import COUNTED, PEAKS, amount, counted, most_spent, values, weights
from blockc.place.traffic.goals import spent as spent_of
from blockc.place.traffic.packing import FINE, PARTS, PackedCell, Packing, devices_of, packing_problem

# Beyond these the model is not worth building: at 48 cells it found nothing in 30 s.
MOST_DEVICES: Final = 16
_MOST_SIZE: Final = 6_000
_PEAK_SCALE: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Devices that may be a cell."""

    kind: int
    block: int
    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """``cells`` None: no packing was found. ``bound``: of the objective; ``units``: deterministic time."""

    cells: tuple[PackedCell, ...] | None
    bound: int
    optimal: bool
    infeasible: bool
    units: float


def places(packing: Packing) -> list[Place]:
    """Aligned runs of every block, wide ones first; where devices are pinned, all that those may need."""
    pinned = {device for group in packing.groups for device in group.devices or ()}
    found = []
    for number, block in enumerate(packing.blocks):
        for kind in sorted(block.kinds, key=lambda k: -packing.kinds[k].width):
            width = packing.kinds[kind].width
            aligned = range(0, len(block.devices) - width + 1, 1 if pinned & set(block.devices) else width)
            found += [Place(kind=kind, block=number, devices=block.devices[i : i + width]) for i in aligned]
    return found


def fits_flat(packing: Packing) -> bool:
    """Whether the model is worth building."""
    return packing.devices <= MOST_DEVICES and packing.devices * (len(packing.groups) + packing.items) <= _MOST_SIZE


class Flat:
    """``n[g][c]``: units of group g in place c; ``x[c][a]``: item a is there; ``states[c]``: cadence and limit.

    ``paced[c]``: sweep times tokens, only of places that full steps can be too much for.
    """

    def __init__(self, packing: Packing) -> None:
        from ortools.sat.python import cp_model

        self.cp = cp_model
        self.model: Any = cp_model.CpModel()
        self.packing = packing
        self.places = places(packing)
        self.use = [self.model.new_bool_var(f"use{c}") for c in range(len(self.places))]
        self.n = [self._units(group) for group in range(len(packing.groups))]
        self.on = [self._present(group) for group in range(len(packing.groups))]
        self.x: list[dict[int, Any]] = [self._items(c) for c in range(len(self.places))]
        self.states = [self._state(c) for c in range(len(self.places))]
        self.paced: dict[int, Any] = {}
        self.spent = self._weighed(counted(packing))
        for group, own in enumerate(packing.groups):
            self.model.add(sum(self.n[group].values()) == own.units)
        for c in range(len(self.places)):
            self._capacity(c)
        self._exclusive()
        self._apart()
        self._copies()
        if self._alike and all(group.devices is None for group in packing.groups):
            self._break_symmetry()

    def minimise_spent(self, *, least: int, most: int) -> None:
        """What cells are counted by."""
        self.model.add(self.spent >= least)
        self.model.add(self.spent <= most)
        self.model.minimize(self.spent)

    def minimise(self, goal: str, *, known: Mapping[str, int]) -> None:
        """A goal of those that come later. ``known``: no more of these than a packing has that is known."""
        for other, value in known.items():
            if other in PEAKS:
                self.model.add(self._peak(other) <= -(-value * _PEAK_SCALE // PARTS))
            else:
                self.model.add(self._total(other) <= value)
        self.model.minimize(self._peak(goal) if goal in PEAKS else self._total(goal))

    def _weighed(self, goal: str) -> Any:
        own = weights(self.packing, goal)
        return sum(own[place.kind] * use for place, use in zip(self.places, self.use, strict=True))

    def _total(self, goal: str) -> Any:
        """Of a goal that adds up over cells."""
        if goal in COUNTED:
            return self._weighed(goal)
        kinds = [self.packing.kinds[place.kind] for place in self.places]
        if goal == "memory":
            return sum(
                kind.width * kind.item_bytes[item] * x
                for kind, own in zip(kinds, self.x, strict=True)
                for item, x in own.items()
            )
        return sum(kinds[c].unit_sent[g] * count for g, own in enumerate(self.n) for c, count in own.items())

    def _peak(self, goal: str) -> Any:
        """The busiest cell, in ten-thousandths, or by ``slo`` of what it may be; without any load the fullest."""
        peak = self.model.new_int_var(0, _PEAK_SCALE, goal)
        busy = any(group.tau_ns is not None for group in self.packing.groups)
        for c, place in enumerate(self.places):
            kind = self.packing.kinds[place.kind]
            if not busy:
                self.model.add(peak * (kind.offered_bytes // _PEAK_SCALE) >= self._held(c))
            for (tau_ns, limit), state in self.states[c].items():
                if busy and tau_ns is not None:
                    whole = limit if goal == "slo" else PARTS
                    self.model.add(peak * (tau_ns * whole // _PEAK_SCALE) >= self._busy(c, tau_ns)).only_enforce_if(
                        state
                    )
                    if self._may_fill(c, tau_ns, limit):
                        scaled = self.packing.full_step * whole // _PEAK_SCALE
                        self.model.add(peak * scaled >= self._in_full_steps(c)).only_enforce_if(state)
        return peak

    def hint(self, cells: Sequence[PackedCell]) -> None:
        """Begin with a packing."""
        self.model.clear_hints()
        by_devices = self._aligned(cells)
        for c, place in enumerate(self.places):
            cell = by_devices.get(place.devices)
            self.model.add_hint(self.use[c], cell is not None)
            units = {} if cell is None else dict(cell.units)
            for group, found in enumerate(self.n):
                if c in found:
                    self.model.add_hint(found[c], units.get(group, 0))

    def run(self, *, units: float, seed: int, presolve: bool = True, gap: float = 0.0) -> Outcome:
        """Solve. ``units``: of deterministic time."""
        solver = self.cp.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = seed
        solver.parameters.max_deterministic_time = units
        solver.parameters.cp_model_presolve = presolve
        solver.parameters.relative_gap_limit = gap
        status = solver.solve(self.model)
        spent = solver.response_proto.deterministic_time
        bound = -int(-(solver.best_objective_bound - 1e-6) // 1)
        if status not in (self.cp.OPTIMAL, self.cp.FEASIBLE):
            infeasible = status == self.cp.INFEASIBLE
            return Outcome(cells=None, bound=bound, optimal=False, infeasible=infeasible, units=spent)
        cells = tuple(
            PackedCell(kind=place.kind, devices=place.devices, units=given)
            for c, place in enumerate(self.places)
            if (given := tuple((g, count) for g, n in enumerate(self.n) if c in n and (count := solver.value(n[c]))))
        )
        if packing_problem(self.packing, cells) is not None:
            return Outcome(cells=None, bound=0, optimal=False, infeasible=False, units=spent)
        ordered = tuple(sorted(cells, key=lambda cell: cell.devices))
        return Outcome(cells=ordered, bound=bound, optimal=status == self.cp.OPTIMAL, infeasible=False, units=spent)

    def _units(self, group: int) -> dict[int, Any]:
        own = self.packing.groups[group]
        found = {}
        for c, place in enumerate(self.places):
            if self.packing.can(place.kind, group) and (own.devices is None or own.devices.issuperset(place.devices)):
                found[c] = self.model.new_int_var(0, own.units, f"n{group}_{c}")
        return found

    def _present(self, group: int) -> dict[int, Any]:
        """Whether any unit is in a place."""
        found = {}
        for c, count in self.n[group].items():
            on = self.model.new_bool_var(f"on{group}_{c}") if self.packing.groups[group].units > 1 else count
            if on is not count:
                self.model.add(count <= self.packing.groups[group].units * on)
            self.model.add_implication(on, self.use[c]) if on is not count else self.model.add(count <= self.use[c])
            found[c] = on
        return found

    def _items(self, c: int) -> dict[int, Any]:
        found: dict[int, Any] = {}
        for group, own in enumerate(self.packing.groups):
            if c not in self.on[group]:
                continue
            for item in own.items:
                if item not in found:
                    found[item] = self.model.new_bool_var(f"x{item}_{c}")
                self.model.add(self.on[group][c] <= found[item])
        return found

    def _state(self, c: int) -> dict[tuple[int | None, int], Any]:
        """One literal for each cadence and limit that a used place may have."""
        kind = self.packing.kinds[self.places[c].kind]
        here = [g for g in range(len(self.packing.groups)) if c in self.on[g]]
        taus = {self.packing.groups[g].tau_ns for g in here}
        limits = {kind.limit[g] for g in here}
        keys = sorted(((tau, limit) for tau in taus for limit in limits), key=lambda key: (key[0] or 0, key[1]))
        states = {key: self.model.new_bool_var(f"s{c}_{key}") for key in keys}
        self.model.add(sum(states.values()) == self.use[c])
        for (tau, limit), state in states.items():
            for g in here:
                own = self.packing.groups[g].tau_ns
                late = own is not None and (tau is None or tau > own)
                if late or kind.limit[g] < limit:
                    self.model.add(self.on[g][c] == 0).only_enforce_if(state)
        return states

    def _busy(self, c: int, tau_ns: int) -> Any:
        """Parts times the cadence: whole numbers that round nothing."""
        kind = self.packing.kinds[self.places[c].kind]
        return tau_ns * self._traffic(c) + PARTS * (self._sweep(c) + kind.step_ns)

    def _in_full_steps(self, c: int) -> Any:
        """Parts times `Packing.full_step`, as above: where as many steps are taken as its tokens fill."""
        kind, full = self.packing.kinds[self.places[c].kind], self.packing.full_step
        if c not in self.paced:
            most_ns = sum(kind.item_ns[item] for item in self.x[c]) + kind.step_ns
            sweep = self.model.new_int_var(0, most_ns, f"sweep{c}")
            tokens = self.model.new_int_var(0, self._most_tokens(c, PARTS), f"tokens{c}")
            self.paced[c] = self.model.new_int_var(0, PARTS * full, f"paced{c}")
            self.model.add(sweep == self._sweep(c) + kind.step_ns)
            self.model.add(tokens == sum(self.packing.groups[g].milli_tokens * n for g, n in self._here(c)))
            self.model.add_multiplication_equality(self.paced[c], [sweep, tokens])
        return self.paced[c] + full * self._traffic(c)

    def _may_fill(self, c: int, tau_ns: int, limit: int) -> bool:
        """Whether steps at a cadence can be full before the place is: few states need the product."""
        return self._most_tokens(c, limit) * tau_ns > FINE * self.packing.rows

    def _most_tokens(self, c: int, limit: int) -> int:
        """Thousandths a second, of what fits a place by time."""
        kind = self.packing.kinds[self.places[c].kind]
        here = [(self.packing.groups[g], kind.unit_parts[g]) for g, _ in self._here(c)]
        by_time = max((own.milli_tokens / parts for own, parts in here if parts), default=0.0) * limit
        return min(sum(own.milli_tokens * own.units for own, _ in here), int(by_time) + 1)

    def _here(self, c: int) -> list[tuple[int, Any]]:
        """Groups that a place can have, and how many units of each."""
        return [(g, n[c]) for g, n in enumerate(self.n) if c in n]

    def _traffic(self, c: int) -> Any:
        kind = self.packing.kinds[self.places[c].kind]
        return sum(kind.unit_parts[g] * n for g, n in self._here(c))

    def _sweep(self, c: int) -> Any:
        kind = self.packing.kinds[self.places[c].kind]
        return sum(kind.item_ns[item] * x for item, x in self.x[c].items())

    def _held(self, c: int) -> Any:
        kind = self.packing.kinds[self.places[c].kind]
        return sum(kind.unit_bytes[g] * n for g, n in self._here(c)) + sum(
            kind.item_bytes[item] * x for item, x in self.x[c].items()
        )

    def _capacity(self, c: int) -> None:
        kind = self.packing.kinds[self.places[c].kind]
        for (tau, limit), state in self.states[c].items():
            if tau is None:
                continue
            self.model.add(self._busy(c, tau) <= limit * tau).only_enforce_if(state)
            if self._may_fill(c, tau, limit):
                full = self.packing.full_step
                self.model.add(self._in_full_steps(c) <= limit * full).only_enforce_if(state)
                own = sum(self.packing.paced_parts(kind, g) * n for g, n in self._here(c))
                self.model.add(own <= limit).only_enforce_if(state)
        here = [g for g in range(len(self.packing.groups)) if c in self.on[g]]
        steps = sorted({kind.activation[g] for g in here})
        held = self._held(c)
        for activation in steps:
            room = kind.offered_bytes - activation
            some = [self.on[g][c] for g in here if kind.activation[g] >= activation]
            above = self.model.new_bool_var(f"w{c}_{activation}")
            for on in some:
                self.model.add(on <= above)
            self.model.add(held <= room).only_enforce_if(above)

    def _exclusive(self) -> None:
        on_device: dict[int, list[Any]] = {}
        for c, place in enumerate(self.places):
            for device in place.devices:
                on_device.setdefault(device, []).append(self.use[c])
        for uses in on_device.values():
            self.model.add_at_most_one(uses)

    def _apart(self) -> None:
        for group, own in enumerate(self.packing.groups):
            for other in sorted(own.apart):
                if other > group:
                    for c in self.on[group].keys() & self.on[other].keys():
                        self.model.add(self.on[group][c] + self.on[other][c] <= 1)

    @property
    def _alike(self) -> bool:
        """Whether like places may change places: not if a group is to be on several nodes."""
        return all(group.nodes == 1 for group in self.packing.groups)

    def _copies(self) -> None:
        for group, own in enumerate(self.packing.groups):
            if own.copies == 1:
                continue
            on_node: dict[int, list[Any]] = {}
            for c, on in self.on[group].items():
                self.model.add(self.n[group][c] >= on)
                on_node.setdefault(self.packing.blocks[self.places[c].block].node, []).append(on)
            self.model.add(sum(self.on[group].values()) >= own.replicas)
            reached = []
            for node, there in sorted(on_node.items()):
                reached.append(self.model.new_bool_var(f"at{group}_{node}"))
                self.model.add(sum(there) >= reached[-1])
            self.model.add(sum(reached) >= own.nodes)

    def _break_symmetry(self) -> None:
        """Like places of a block in order of use; like blocks in order of devices used."""
        for kind in range(len(self.packing.kinds)):
            for number in range(len(self.packing.blocks)):
                own = [c for c, place in enumerate(self.places) if (place.kind, place.block) == (kind, number)]
                if self.packing.kinds[kind].width == 1:
                    # Wide cells take the first devices of a block, so single ones are used from its end.
                    own.reverse()
                for before, after in pairwise(own):
                    self.model.add_implication(self.use[after], self.use[before])
        alike: dict[tuple[tuple[int, ...], int], list[int]] = {}
        for number, block in enumerate(self.packing.blocks):
            alike.setdefault((block.kinds, len(block.devices)), []).append(number)
        for blocks in alike.values():
            used = [
                sum(len(p.devices) * self.use[c] for c, p in enumerate(self.places) if p.block == number)
                for number in blocks
            ]
            for fuller, emptier in pairwise(used):
                self.model.add(fuller >= emptier)

    def _aligned(self, cells: Sequence[PackedCell]) -> dict[tuple[int, ...], PackedCell]:
        """The cells by places of the model, used as its symmetry wants it; what has no place is left out."""
        if not self._alike or any(group.devices is not None for group in self.packing.groups):
            return {cell.devices: cell for cell in cells}
        blocks = self.packing.blocks
        own = [[cell for cell in cells if cell.devices[0] in block.devices] for block in blocks]
        alike: dict[tuple[tuple[int, ...], int], list[int]] = {}
        for number, block in enumerate(blocks):
            alike.setdefault((block.kinds, len(block.devices)), []).append(number)
        found: dict[tuple[int, ...], PackedCell] = {}
        for numbers in alike.values():
            fullest = sorted(numbers, key=lambda number: -devices_of(own[number]))
            for target, source in zip(numbers, fullest, strict=True):
                free = [place for place in self.places if place.block == target]
                for cell in sorted(own[source], key=lambda cell: -len(cell.devices)):
                    fitting = [p for p in free if p.kind == cell.kind]
                    if not fitting:
                        continue
                    place = fitting[-1] if len(cell.devices) == 1 else fitting[0]
                    found[place.devices] = cell
                    free = [p for p in free if not set(p.devices) & set(place.devices)]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatResult:
    """``bound``: no packing spends less; ``infeasible``: there is none; ``units``: of deterministic time."""

    cells: tuple[PackedCell, ...] | None
    bound: int
    infeasible: bool
    units: float


def least_spent(
    packing: Packing, known: tuple[PackedCell, ...] | None, *, least: int, units: float, seed: int, gap: float
) -> FlatResult:
    """Fewest devices, or the lowest cost, beginning with a packing if one is known. ``least``: a bound known before."""
    most = most_spent(packing) if known is None else spent_of(packing, known)
    model = Flat(packing)
    model.minimise_spent(least=least, most=most)
    if known is not None:
        model.hint(known)
    outcome = model.run(units=units, seed=seed, gap=gap)
    spent = outcome.units
    if outcome.infeasible and known is None:
        # What a solve without presolve finds instead counts; a claim against a known packing never does.
        outcome = model.run(units=units, seed=seed, presolve=False)
        spent += outcome.units
    if outcome.cells is None:
        bound = least if outcome.infeasible else max(least, min(outcome.bound, most))
        return FlatResult(cells=known, bound=bound, infeasible=outcome.infeasible and known is None, units=spent)
    found = spent_of(packing, outcome.cells)
    return FlatResult(cells=outcome.cells, bound=max(least, min(outcome.bound, found)), infeasible=False, units=spent)


def least_of_others(
    packing: Packing, known: tuple[PackedCell, ...], *, units: float, seed: int
) -> tuple[tuple[PackedCell, ...], float]:
    """A packing that spends no more, with as little of the other goals as is found, and the deterministic time.

    Goal by goal, in their order, each with no more of those before it.
    """
    first = counted(packing)
    others = [goal for goal in packing.goals if goal != first]
    took, cells = 0.0, known
    for number, goal in enumerate(others):
        model = Flat(packing)
        model.minimise(goal, known={other: amount(packing, other, cells) for other in (first, *others[:number])})
        model.hint(cells)
        outcome = model.run(units=units / len(others), seed=seed)
        took += outcome.units
        if outcome.cells is not None and values(packing, outcome.cells) <= values(packing, cells):
            cells = outcome.cells
    return cells, took
