"""Which part of a chain's requests goes to each of its cells: the busiest cell as little busy as can be.

In: a packing that holds. Out: a share by group and cell (GLOP, a linear program). Invariant: shares of a group add up
to 1, each is at least half of what its units there were, and every cell still holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from blockc.place.traffic.packing import PackedCell, Packing, cadence_of, sweep_of, tokens_of, traffic_of

_DIGITS: Final = 4


def shares_of(packing: Packing, cells: Sequence[PackedCell]) -> dict[int, Mapping[int, float]]:
    """Group -> cell -> share. Groups of one cell have it all."""
    given: dict[int, dict[int, float]] = {}
    for number, cell in enumerate(cells):
        for group, count in cell.units:
            given.setdefault(group, {})[number] = count / packing.groups[group].units
    split = [g for g, own in sorted(given.items()) if len(own) > 1 and packing.groups[g].tau_ns is not None]
    found = _balanced(packing, cells, given, split) if split else {}
    return {group: _rounded(found.get(group, own)) for group, own in sorted(given.items())}


def _balanced(
    packing: Packing, cells: Sequence[PackedCell], given: Mapping[int, Mapping[int, float]], split: Sequence[int]
) -> dict[int, dict[int, float]]:
    from ortools.linear_solver import pywraplp

    solver: Any = pywraplp.Solver.CreateSolver("GLOP")
    peak = solver.NumVar(0.0, 1.0, "")
    solver.Minimize(peak)
    y = {group: {cell: solver.NumVar(part / 2, 1.0, "") for cell, part in given[group].items()} for group in split}
    for group in split:
        solver.Add(sum(y[group].values()) == 1.0)
    for number, cell in enumerate(cells):
        here = [group for group, _ in cell.units if group in y]
        if not here:
            continue
        kind = packing.kinds[cell.kind]
        limit = min(kind.limit[group] for group, _ in cell.units)
        before = {group: given[group][number] for group in here}
        units = {group: packing.groups[group].units for group in here}

        def moved(amount: Mapping[int, int], number: int = number, units: Mapping[int, int] = units,
                  before: Mapping[int, float] = before) -> Any:  # fmt: skip
            """What comes here more than before, by amounts of a unit."""
            return sum(amount[g] * units[g] * (y[g][number] - before[g]) for g in units)

        parts = {group: kind.unit_parts[group] for group in here}
        traffic = traffic_of(packing, cell)
        sweep_ns = sweep_of(packing, cell)
        due = kind.fixed_parts(sweep_ns, cadence_of(packing, cell))
        solver.Add(due + traffic + moved(parts) <= limit * peak)
        tokens = {group: packing.groups[group].milli_tokens for group in here}
        swept = (sweep_ns + kind.step_ns) / packing.full_step
        solver.Add(swept * (tokens_of(packing, cell) + moved(tokens)) + traffic + moved(parts) <= limit * peak)
        # Never more memory than the units that were counted: what is lent elsewhere is free.
        pages = {group: kind.unit_bytes[group] for group in here}
        resident = {item for group, _ in cell.units for item in packing.groups[group].items}
        held = sum(kind.item_bytes[item] for item in resident)
        held += sum(kind.unit_bytes[group] * count for group, count in cell.units)
        held += max(kind.activation[group] for group, _ in cell.units)
        solver.Add(moved(pages) <= kind.offered_bytes - held)
    if solver.Solve() != pywraplp.Solver.OPTIMAL:
        return {}
    return {group: {cell: var.solution_value() for cell, var in own.items()} for group, own in y.items()}


def _rounded(shares: Mapping[int, float]) -> dict[int, float]:
    """To ten-thousandths that add up to one; the largest takes what is left over."""
    found = {cell: round(share, _DIGITS) for cell, share in sorted(shares.items())}
    largest = max(found, key=lambda cell: (found[cell], -cell))
    others = sum(share for cell, share in found.items() if cell != largest)
    return {**found, largest: round(1 - others, _DIGITS)}
