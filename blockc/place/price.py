"""What a plan costs an hour, and what other ways to serve would cost.

In: a problem whose devices all have prices, and a placement. Out: prices, or None. PM is every model by itself, whole;
PS is every full model by itself, with the adapters on it. What they cost lies between the closed form of
`traffic.aggregate`, which no placement of them undercuts, and what a short search finds on as many devices as they
need; placing them with the effort that ours gets would take longer than placing ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from blockc.ir.layout import ResidentTensor
from blockc.place.cells import Views
from blockc.place.problem import PlaceDevice, PlaceProblem, PlaceSegment
from blockc.place.traffic.aggregate import cheapest_parts
from blockc.place.traffic.goals import said, spent, weights
from blockc.place.traffic.greedy import multi_start
from blockc.place.traffic.improve import improve
from blockc.place.traffic.units import packing_of
from blockc.plan import InstanceEntry, PriceEntry, PriceRangeEntry

_Owner = Callable[[int], object]
_STARTS: Final = 4
_ROUNDS: Final = 500
# Units and groups. A thousand models by themselves are too many to place on the side.
_MOST_PAIRS: Final = 1_000_000
_MORE: Final = 4


def price_of(problem: PlaceProblem, instances: Sequence[InstanceEntry]) -> PriceEntry | None:
    """None where some device has no price."""
    prices = [device.price_per_hour for device in problem.devices]
    known = [price for price in prices if price is not None]
    if len(known) < len(prices):
        return None
    used = {device for instance in instances for device in instance.devices}
    own = float(sum((known[device] for device in sorted(used)), start=known[0] * 0))
    shared = _divided(problem, lambda chain: problem.chains[chain].segments, adapters=True)
    # Where only adapters share anything, the plan is one of PS.
    is_ours = len(shared.segments) == len(problem.segments)
    return PriceEntry(
        per_hour=own,
        pm=_between(_divided(problem, lambda chain: chain, adapters=False)),
        ps=_between(shared, known=own if is_ours else None),
    )


def _between(problem: PlaceProblem, *, known: float | None = None) -> PriceRangeEntry | None:
    """What it costs at least, and by a placement that was found, or is known; None where something fits nowhere."""
    packing = packing_of(Views(problem=replace(problem, devices=_repeated(problem), objective=("cost",))))
    least = cheapest_parts(packing, weights(packing))
    if least is None:
        return None
    pairs = sum(group.units for group in packing.groups) * len(packing.groups)
    cells = multi_start(packing, _STARTS) if pairs <= _MOST_PAIRS else None
    if cells is not None:
        cells = improve(packing, cells, rounds=_ROUNDS, least=least)
    found = [] if cells is None else [said("cost", spent(packing, cells))]
    found += [] if known is None else [known]
    return PriceRangeEntry(least=said("cost", least), found=min(found, default=None))


def _repeated(problem: PlaceProblem) -> tuple[PlaceDevice, ...]:
    """Each node several times, those that are there first."""
    nodes = [f"{number}-" if number else "" for number in range(_MORE)]
    return tuple(replace(own, address=f"{name}{own.address}") for name in nodes for own in problem.devices)


def _divided(problem: PlaceProblem, owner: _Owner, *, adapters: bool) -> PlaceProblem:
    """Chains share the segments that they have in common only if they have one owner."""
    number: dict[tuple[int, object], int] = {}
    owners: dict[object, int] = {}
    paths = [
        tuple(number.setdefault((segment, owner(index)), len(number)) for segment in chain.segments)
        for index, chain in enumerate(problem.chains)
    ]
    for _, name in number:
        owners.setdefault(name, len(owners))
    work = problem.work
    return replace(
        problem,
        segments=tuple(_copied(problem.segments[segment], owners[name]) for segment, name in number),
        chains=tuple(
            replace(chain, segments=path, side_bytes=chain.side_bytes if adapters else 0)
            for chain, path in zip(problem.chains, paths, strict=True)
        ),
        work=work
        and replace(
            work,
            segments=tuple(work.segments[segment] for segment, _ in number),
            chains=tuple(
                replace(
                    own,
                    segments=path,
                    side_bytes=own.side_bytes if adapters else 0,
                    side_token_flops=own.side_token_flops if adapters else 0,
                )
                for own, path in zip(work.chains, paths, strict=True)
            ),
        ),
    )


def _copied(segment: PlaceSegment, owner: int) -> PlaceSegment:
    return replace(segment, tensors=frozenset(_renamed(tensor, owner) for tensor in segment.tensors))


def _renamed(tensor: ResidentTensor, owner: int) -> ResidentTensor:
    digest = hashlib.sha256(f"{owner}:{tensor.ref.digest}".encode()).hexdigest()
    return replace(tensor, ref=replace(tensor.ref, digest=digest))
