"""Which load is left out where some models run in stages: by the same order of priorities, over all apps together.

In: a problem whose loads cannot be placed together. Out: the part of each app that is served; None where leaving load
out does not help. A share is tried as placement would do it: pipelines first, all else on what is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Final

from blockc.place.cells import Views
from blockc.place.stages.pipelines import best, pipelines_of, staged_chains
from blockc.place.stages.rest import rest_of
from blockc.place.traffic.explain import is_able
from blockc.place.traffic.relaxed import scaled
from blockc.place.traffic.shed import fits, served_parts
from blockc.place.traffic.units import packing_of

_HUNDREDTH: Final = Fraction(1, 100)


def served_in_stages(views: Views) -> Mapping[str, Fraction] | None:
    """By app. None, too, where a chain by itself is late however little there is of it: that is no matter of load."""
    problem = views.problem
    divided = staged_chains(views)
    if len(divided) < len(problem.chains):
        alone = packing_of(Views(problem=rest_of(problem, divided, ())))
        if not all(is_able(alone, group) for group in range(len(alone.groups))):
            return None
    little, every = scaled(problem, _HUNDREDTH), range(len(problem.devices))
    if any(best(little, (chain,), every) is None for chain in divided):
        return None
    return served_parts(problem, lambda less: _fits(views.with_problem(less)))


def _fits(views: Views) -> bool:
    pipelines = pipelines_of(views)
    if pipelines is None:
        return False
    chains = {chain for own in pipelines for chain in own.staged.chains}
    left = rest_of(views.problem, chains, {device for own in pipelines for device in own.devices})
    return not left.chains or (bool(left.devices) and fits(Views(problem=left)))
