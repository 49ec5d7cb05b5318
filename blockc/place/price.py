"""What a plan costs an hour, and what other ways to serve would cost at least.

In: a problem whose devices all have prices, and a placement. Out: prices, or None. PM is every model by itself, whole;
PS is every full model by itself, with the adapters on it. Nobody places those: theirs is the closed form of
`traffic.aggregate`, which no placement of them undercuts, so that the comparison errs against sharing blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from blockc.ir.layout import ResidentTensor
from blockc.place.cells import Views
from blockc.place.problem import PlaceProblem, PlaceSegment
from blockc.place.traffic.aggregate import cheapest_parts
from blockc.place.traffic.goals import said, weights
from blockc.place.traffic.units import packing_of
from blockc.plan import InstanceEntry, PriceEntry

_Owner = Callable[[int], object]


def price_of(problem: PlaceProblem, instances: Sequence[InstanceEntry]) -> PriceEntry | None:
    """None where some device has no price, or nothing is expected: then bytes decide, and the rest is idle."""
    prices = [device.price_per_hour for device in problem.devices]
    known = [price for price in prices if price is not None]
    if len(known) < len(prices):
        return None
    used = {device for instance in instances for device in instance.devices}
    return PriceEntry(
        per_hour=float(sum((known[device] for device in sorted(used)), start=known[0] * 0)),
        pm_per_hour=_least(_divided(problem, lambda chain: chain, adapters=False)),
        ps_per_hour=_least(_divided(problem, lambda chain: problem.chains[chain].segments, adapters=True)),
    )


def _least(problem: PlaceProblem) -> float | None:
    """No placement of it costs less; None where something fits nowhere."""
    packing = packing_of(Views(problem=replace(problem, objective=("cost",))))
    found = cheapest_parts(packing, weights(packing))
    return None if found is None else said("cost", found)


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
