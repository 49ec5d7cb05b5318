"""Which apps' load is left out where not all of it fits: that of the highest priorities, as little as is found.

In: a problem whose loads cannot be placed together. Out: the part that is served, of each app that is not served in
full; None where leaving load out does not help. Apps of one priority are served in equal parts, in whole hundredths;
none of a higher priority is served anything before all of a lower one is. What is left out has no place: its models
are in memory all the same, and answer as far as there is time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Final

from blockc.diag import Diagnostics, Label
from blockc.place.cells import Views
from blockc.place.loads import all_parts, with_served
from blockc.place.problem import PlacePart, PlaceProblem
from blockc.place.traffic.explain import is_able
from blockc.place.traffic.greedy import multi_start
from blockc.place.traffic.units import packing_of

_STARTS: Final = 6
_SHOWN: Final = 8


def served_parts(problem: PlaceProblem, holds: Callable[[PlaceProblem], bool]) -> Mapping[str, Fraction] | None:
    """By app. ``holds``: whether the problem with less load can be placed."""
    parts = all_parts(problem)

    def given_holds(level: int, hundredths: int) -> bool:
        return holds(with_served(problem, _given(parts, level, hundredths)))

    for level in sorted({part.priority for part in parts}, reverse=True):
        if not given_holds(level, 0):
            continue
        low, high = 0, 100
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if given_holds(level, middle) else (low, middle)
        return _given(parts, level, low)
    return None


def _given(parts: Sequence[PlacePart], level: int, hundredths: int) -> dict[str, Fraction]:
    """Lower priorities in full, one in part, higher ones not at all."""
    part_of = {part.app: Fraction(hundredths if part.priority == level else 0, 100) for part in parts}
    return {part.app: part_of[part.app] for part in parts if part.priority >= level}


def fits(views: Views) -> bool:
    """Whether a packing of a problem's loads is found."""
    packing = packing_of(views)
    return all(is_able(packing, group) for group in range(len(packing.groups))) and (
        multi_start(packing, _STARTS) is not None
    )


def report_shed(problem: PlaceProblem, served: Mapping[str, Fraction], diags: Diagnostics) -> None:
    """Warn of what has no place (BC405)."""
    parts = all_parts(problem)
    left = [part for part in parts if served.get(part.app, 1) < 1]
    first = max(left, key=lambda part: part.priority)
    shown = [
        f"`{part.app}`, priority {part.priority}: {float(served[part.app]):.0%} of {float(part.rate_rps):.4g} rps"
        for part in left[:_SHOWN]
    ]
    if len(left) > _SHOWN:
        shown.append(f"and {len(left) - _SHOWN} more")
    shown.append("an `expect { slo_attainment = ... }` is judged over what has a place")
    diags.report(
        "BC405",
        f"{len(left)} of {len(parts)} apps have no place for all of their load",
        at=first.span,
        secondary=tuple(Label(span=part.span) for part in left[:_SHOWN] if part is not first and part.span is not None),
        notes=tuple(shown),
        help="more devices, lower rates, or another `priority`; without `overload = shed` such a spec is refused",
    )
