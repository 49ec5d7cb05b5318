"""From a packing to the best plan that was found, and how good it is.

In: a packing. Out: cells and shares, a bound and what proves it, and how both came about. The order: many greedy
starts, rounds of improvement, a closed form, counts of cell types, and for few devices the exact model. Nothing stops
by the clock: starts and rounds are counted, and solvers stop by deterministic time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from blockc.place.traffic.aggregate import aggregate, closed_form
from blockc.place.traffic.flat import fits_flat, least_of_others, least_spent
from blockc.place.traffic.goals import PEAKS, amount, capped, most_spent, spent
from blockc.place.traffic.greedy import multi_start
from blockc.place.traffic.improve import LEAST_ROUNDS, improve, rounds_of
from blockc.place.traffic.packing import PARTS, PackedCell, Packing

# Of deterministic time. Observed: 0.5 to 2 units a second; counts settle early or not at all.
_COUNTS_UNITS: Final = 2.0
_FLAT_UNITS: Final = 6.0
_OTHERS_UNITS: Final = 0.5
# Of the time of a cell, when the busiest is to be as little busy as can be.
_LEVELS: Final = 1_000
_LEVEL_STARTS: Final = 6
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

    ``bound``: of ``goal``, in its own whole numbers. ``bound_kind``: what proves it: the closed form, counts of
    cell types, or the exact model (``flat``).
    """

    cells: tuple[PackedCell, ...] | None
    bound: int
    bound_kind: str
    infeasible: bool
    history: tuple[Step, ...]
    goal: str = "devices"


def solve(packing: Packing, *, seed: int, limit_s: float, gap: float) -> Solved:
    """Solve. ``limit_s``: the policy's, as deterministic time; ``gap``: with which it is content."""
    if not packing.groups:
        return Solved(cells=(), bound=0, bound_kind="closed form", infeasible=False, history=())
    if packing.goals[0] in PEAKS:
        return _levelled(packing, seed=seed, limit_s=limit_s, gap=gap)
    closed = closed_form(packing)
    bound, kind = closed.value, closed.kind
    budget, took = limit_s * _UNITS_PER_S, 0.0
    history = [Step(units=0.0, value=None, bound=bound)]
    most = most_spent(packing)
    cells = None if closed.infeasible else multi_start(packing)

    def value() -> int | None:
        return None if cells is None else spent(packing, cells)

    if cells is not None:
        history.append(Step(units=0.0, value=value(), bound=bound))
        # Where the exact model comes after, rounds only find it a start.
        rounds = LEAST_ROUNDS if fits_flat(packing) else rounds_of(packing, cells)
        cells = improve(packing, cells, rounds=rounds, least=bound)
        history.append(Step(units=0.0, value=value(), bound=bound))

    def content() -> bool:
        found = value()
        return found is not None and found - bound <= gap * found

    infeasible = closed.infeasible
    if not content() and not infeasible:
        most = value() or most
        counted = aggregate(packing, units=min(_COUNTS_UNITS, budget), least=bound, most=most, seed=seed)
        took += counted.units
        if counted.value > bound and not counted.infeasible:
            bound, kind = counted.value, counted.kind
        history.append(Step(units=took, value=value(), bound=bound))
    if not content() and not infeasible and fits_flat(packing):
        found = least_spent(
            packing, cells, least=bound, units=max(0.1, min(_FLAT_UNITS, budget - took)), seed=seed, gap=gap
        )
        took += found.units
        cells, infeasible = found.cells, found.infeasible
        if found.bound > bound:
            bound, kind = found.bound, "flat"
        history.append(Step(units=took, value=value(), bound=bound))
    if cells is not None and fits_flat(packing) and len(packing.groups) > 1 and budget > took:
        cells, _ = least_of_others(packing, cells, units=min(_OTHERS_UNITS, budget - took), seed=seed)
    return Solved(
        cells=cells, bound=bound, bound_kind=kind, infeasible=infeasible, history=tuple(history),
        goal=packing.goals[0],
    )  # fmt: skip


def _levelled(packing: Packing, *, seed: int, limit_s: float, gap: float) -> Solved:
    """The busiest cell as little busy as is found first, then all else as it is without that.

    By a lower and lower limit on all cells, halving what is left between what the closed form rules out and what the
    greedy search finds.
    """
    goal = packing.goals[0]

    def at(level: int) -> Packing:
        return capped(packing, goal, level * PARTS // _LEVELS)

    ruled_out, found = 0, _LEVELS
    while found - ruled_out > 1:
        middle = (ruled_out + found) // 2
        ruled_out, found = (middle, found) if closed_form(at(middle)).infeasible else (ruled_out, middle)
    bound, low, high = ruled_out, ruled_out, _LEVELS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if multi_start(at(middle), _LEVEL_STARTS) is not None else (middle, high)
    solved = solve(at(high), seed=seed, limit_s=limit_s, gap=gap)
    if solved.cells is None:
        return solved
    least = bound * PARTS // _LEVELS
    step = Step(units=0.0, value=amount(packing, goal, solved.cells), bound=least)
    return replace(solved, bound=least, bound_kind="closed form", history=(step,), goal=goal)
