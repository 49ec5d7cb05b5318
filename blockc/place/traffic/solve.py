"""From a packing to the best plan that was found, and how good it is.

In: a packing. Out: cells and shares, a bound and what proves it, and how both came about. The order: many greedy
starts, rounds of improvement, a closed form, counts of cell types, and for few devices the exact model. Nothing stops
by the clock: starts and rounds are counted, and solvers stop by deterministic time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from blockc.place.traffic.aggregate import aggregate, closed_form
from blockc.place.traffic.flat import fewest_devices, fits_flat, lowest_peak
from blockc.place.traffic.greedy import multi_start
from blockc.place.traffic.improve import improve, rounds_of
from blockc.place.traffic.packing import PackedCell, Packing, devices_of

# Of deterministic time. Observed: 0.5 to 2 units a second; counts settle early or not at all.
_COUNTS_UNITS: Final = 2.0
_FLAT_UNITS: Final = 6.0
_PEAK_UNITS: Final = 0.5
_UNITS_PER_S: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What was known after ``units`` of deterministic time."""

    units: float
    value: int | None
    bound: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """``cells`` None: no packing was found; then ``infeasible`` says whether there is none.

    ``bound_kind``: what proves ``bound``: the closed form, counts of cell types, or the exact model (``flat``).
    """

    cells: tuple[PackedCell, ...] | None
    bound: int
    bound_kind: str
    infeasible: bool
    history: tuple[Step, ...]

    @property
    def gap(self) -> float:
        """From the bound to the plan, as a part of the plan."""
        if self.cells is None:
            return 1.0
        value = devices_of(self.cells)
        return (value - min(value, self.bound)) / value


def solve(packing: Packing, *, seed: int, limit_s: float, gap: float) -> Solved:
    """Solve. ``limit_s``: the policy's, as deterministic time; ``gap``: with which it is content."""
    if not packing.groups:
        return Solved(cells=(), bound=0, bound_kind="closed form", infeasible=False, history=())
    closed = closed_form(packing)
    bound, kind = closed.devices, closed.kind
    budget, spent = limit_s * _UNITS_PER_S, 0.0
    history = [Step(units=0.0, value=None, bound=bound)]
    cells = None if bound > packing.devices else multi_start(packing)
    if cells is not None:
        history.append(Step(units=0.0, value=devices_of(cells), bound=bound))
        cells = improve(packing, cells, rounds=rounds_of(packing, cells), least=bound)
        history.append(Step(units=0.0, value=devices_of(cells), bound=bound))

    def content() -> bool:
        return cells is not None and devices_of(cells) - bound <= gap * devices_of(cells)

    if not content() and bound <= packing.devices:
        most = packing.devices if cells is None else devices_of(cells)
        counted = aggregate(packing, units=min(_COUNTS_UNITS, budget), least=bound, most=most, seed=seed)
        spent += counted.units
        if counted.devices > bound and not counted.infeasible:
            bound, kind = counted.devices, counted.kind
        history.append(Step(units=spent, value=None if cells is None else most, bound=bound))
    infeasible = bound > packing.devices
    if not content() and not infeasible and fits_flat(packing):
        found = fewest_devices(
            packing, cells, least=bound, units=max(0.1, min(_FLAT_UNITS, budget - spent)), seed=seed, gap=gap
        )
        spent += found.units
        cells, infeasible = found.cells, found.infeasible
        if found.devices_bound > bound:
            bound, kind = found.devices_bound, "flat"
        history.append(Step(units=spent, value=None if cells is None else devices_of(cells), bound=bound))
    if cells is not None and fits_flat(packing) and len(packing.groups) > 1 and budget > spent:
        peak = lowest_peak(packing, cells, units=min(_PEAK_UNITS, budget - spent), seed=seed)
        cells = peak.cells
    return Solved(cells=cells, bound=bound, bound_kind=kind, infeasible=infeasible, history=tuple(history))
