"""Which chain goes to which device: CP-SAT, exact for small clusters.

In: a problem. Out: a device for each chain with the bound that proves how good it is, or that there is none. Memory is
counted as the runtime fills it: a tensor once on every device that has a chain with it.

Objective, in this order: few devices, then an even load (by rate where the spec gives rates, else by bytes).
Deterministic: one worker, a fixed seed, a limit in deterministic time, sorted input; ortools is pinned because results
are kept within one version only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ortools.sat.python import cp_model

from blockc.place.problem import PlaceChain, PlaceProblem

SEED = 7
_DETERMINISTIC_TIME = 20.0
_UNIT_BYTES = 1 << 10  # memory is counted in KiB, rounded up where it is needed and down where it is offered
_SHARES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """``device_of[c]``: device of chain c. ``value`` devices are used, ``bound`` is proven to be needed."""

    device_of: tuple[int, ...]
    value: int
    bound: int
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Weights that exactly these chains have."""

    units: int
    chains: tuple[int, ...]


def assign(problem: PlaceProblem) -> Assignment | None:
    """The best assignment; None if there is none. Raises TimeoutError if the limit passed without an answer."""
    model = cp_model.CpModel()
    on, use = _variables(model, problem)
    model.minimize(sum(use))
    solver, status = _solve(model, presolve=True)
    if status == cp_model.INFEASIBLE:
        # ortools 9.15 may call a feasible model infeasible in presolve (issue 5274): ask again without it.
        solver, status = _solve(model, presolve=False)
        if status == cp_model.INFEASIBLE:
            return None
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        raise TimeoutError
    devices, bound = round(solver.objective_value), round(solver.best_objective_bound)
    device_of = _read(solver, on)
    model.add(sum(use) <= devices)
    _hint(model, on, device_of)
    peak = _peak_load(model, problem, on)
    model.minimize(peak)
    even, even_status = _solve(model, presolve=True)
    if even_status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        device_of = _read(even, on)
    proven = status == cp_model.OPTIMAL
    return Assignment(device_of=device_of, value=devices, bound=bound, status="optimal" if proven else "feasible")


def kv_minimum_bytes(chain: PlaceChain, problem: PlaceProblem) -> int:
    """Pages of one sequence of full length."""
    return sum(
        -(-chain.max_model_len // problem.groups[group].page_tokens) * problem.groups[group].page_bytes
        for group in chain.groups
    )


def _variables(model: cp_model.CpModel, problem: PlaceProblem) -> tuple[list[list[Any]], list[Any]]:
    """``on[c][d]`` and ``use[d]``, with memory, and identical devices filled in order."""
    devices, chains = range(len(problem.devices)), range(len(problem.chains))
    on = [[model.new_bool_var(f"on_{c}_{d}") for d in devices] for c in chains]
    use = [model.new_bool_var(f"use_{d}") for d in devices]
    for c in chains:
        model.add_exactly_one(on[c])
    parts = _parts(problem)
    layouts = sorted({chain.groups for chain in problem.chains})
    for d in devices:
        load: list[Any] = [use[d] * _up(problem.workspace_bytes)]
        for c in chains:
            model.add_implication(on[c][d], use[d])
            load.append(on[c][d] * _up(problem.chains[c].sides_bytes))
        for number, part in enumerate(parts):
            present = model.new_bool_var(f"part_{number}_{d}")
            for c in part.chains:
                model.add_implication(on[c][d], present)
            load.append(present * part.units)
        for number, layout in enumerate(layouts):
            members = [c for c in chains if problem.chains[c].groups == layout]
            needs = {c: _up(kv_minimum_bytes(problem.chains[c], problem)) for c in members}
            pages = model.new_int_var(0, max(needs.values()), f"kv_{number}_{d}")
            for c in members:
                model.add(pages >= needs[c] * on[c][d])
            load.append(pages)
        model.add(sum(load) <= problem.devices[d].usable_bytes // _UNIT_BYTES)
    for d in devices[1:]:
        if _alike(problem, d - 1, d):
            model.add(use[d - 1] >= use[d])
    return on, use


def _parts(problem: PlaceProblem) -> list[_Part]:
    """Tensors grouped by which chains have them."""
    owners: dict[Any, list[int]] = {}
    for index, chain in enumerate(problem.chains):
        for form in chain.weights:
            owners.setdefault(form, []).append(index)
    sizes: dict[tuple[int, ...], int] = {}
    for form, chains in owners.items():
        sizes[tuple(chains)] = sizes.get(tuple(chains), 0) + form[1].nbytes
    return [_Part(units=_up(size), chains=chains) for chains, size in sorted(sizes.items())]


def _peak_load(model: cp_model.CpModel, problem: PlaceProblem, on: list[list[Any]]) -> Any:
    rates = [chain.rate_rps for chain in problem.chains]
    weights = rates if any(rates) else [float(chain.sides_bytes + 1) for chain in problem.chains]
    total = sum(weights)
    shares = [max(1, round(_SHARES * weight / total)) for weight in weights]
    peak = model.new_int_var(0, sum(shares), "peak")
    for d in range(len(problem.devices)):
        model.add(sum(share * on[c][d] for c, share in enumerate(shares)) <= peak)
    return peak


def _solve(model: cp_model.CpModel, *, presolve: bool) -> tuple[cp_model.CpSolver, int]:
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = SEED
    solver.parameters.max_deterministic_time = _DETERMINISTIC_TIME
    solver.parameters.cp_model_presolve = presolve
    return solver, solver.solve(model)


def _read(solver: cp_model.CpSolver, on: list[list[Any]]) -> tuple[int, ...]:
    return tuple(next(d for d, variable in enumerate(row) if solver.boolean_value(variable)) for row in on)


def _hint(model: cp_model.CpModel, on: list[list[Any]], device_of: tuple[int, ...]) -> None:
    for c, row in enumerate(on):
        for d, variable in enumerate(row):
            model.add_hint(variable, device_of[c] == d)


def _alike(problem: PlaceProblem, left: int, right: int) -> bool:
    one, other = problem.devices[left], problem.devices[right]
    return (one.kind, one.usable_bytes) == (other.kind, other.usable_bytes)


def _up(size_bytes: int) -> int:
    return -(-size_bytes // _UNIT_BYTES)
