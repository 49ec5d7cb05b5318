"""The part of a load that a plan promises to serve, where it has no place for all of it (`overload = shed`).

In: a workload, and of each app the part that has a place. Out: the same without the rest. A conversation stays or goes
as a whole, by a draw of its own: what is left of a Poisson process is one, at the rate that was planned for.
Invariants: an app's draws do not change with other apps, nor with what comes later, and a greater part keeps all that a
smaller one keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from blockc.simulate.workload import Arrival, Workload, opening


def promised(workload: Workload, parts: Sequence[float], seed: int) -> Workload:
    """Leave out what has no place. ``parts``: by app, 1 where all of it has one."""
    if all(part >= 1 for part in parts):
        return workload
    draws = [np.random.default_rng([seed, 4, app]) for app in range(len(parts))]
    stays: dict[tuple[int, int], bool] = {}  # by app and opening of a conversation
    kept: list[Arrival] = []
    number_of: dict[int, int] = {}
    shed = [0] * len(parts)
    for number, item in enumerate(workload.arrivals):
        if item.after is not None:
            is_kept = item.after in number_of
        else:
            talk = None if not item.blocks else (item.app, opening(item.blocks))
            is_kept = stays[talk] if talk in stays else bool(draws[item.app].random() < parts[item.app])
            if talk is not None:
                stays[talk] = is_kept
        if not is_kept:
            shed[item.app] += 1
            continue
        number_of[number] = len(kept)
        kept.append(item if item.after is None else replace(item, after=number_of[item.after]))
    return replace(workload, arrivals=tuple(kept), shed=tuple(shed))
