"""How much a plan leaves where its spec was wrong: more requests than expected, and steps that take longer.

In: a fleet, its load. Out: fleets and loads by what was assumed, to be run like any others. Plans of least cost without
slack degrade sharply at 1.5 times either (arXiv 2604.07472).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from blockc.cost import slower
from blockc.simulate.fleet import Fleet
from blockc.simulate.workload import Workload, faster

# Times the rates, times the costs.
_CASES: Final = ((1.0, 1.0), (1.5, 1.0), (1.0, 1.5), (1.5, 1.5))
Draw = Callable[[int], Workload]


def robust_cases(fleet: Fleet, load: Draw) -> tuple[tuple[Fleet, Draw], ...]:
    """The first case is as it was assumed. ``load``: by seed."""

    def at(rate: float) -> Draw:
        return load if rate == 1.0 else lambda seed: faster(load(seed), rate)

    return tuple((_slower(fleet, rate, cost), at(rate)) for rate, cost in _CASES)


def _slower(fleet: Fleet, rate: float, cost: float) -> Fleet:
    if cost == rate == 1.0:
        return fleet
    parts = [f"{factor:g} x {what}" for factor, what in ((rate, "rates"), (cost, "costs")) if factor != 1.0]
    instances = tuple(
        replace(item, rates=rates, pricer=item.pricer.at(rates))
        for item in fleet.instances
        for rates in (slower(item.rates, cost),)
    )
    return replace(fleet, label=f"{fleet.label}, {' and '.join(parts)}", instances=instances)
