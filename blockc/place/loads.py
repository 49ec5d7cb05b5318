"""Loads of apps -> loads of chains, of all that they expect or of parts of it.

In: what each app expects. Out: a load: rates add up, lengths are means by rate, targets the tightest of any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from blockc.place.problem import PlaceLoad, PlacePart, PlaceProblem


def merged(parts: Sequence[PlacePart]) -> PlaceLoad:
    """What apps of one chain expect together. There is at least one."""
    total = sum((part.rate_rps for part in parts), Fraction(0))
    tpots = [(part.tpot_s, part) for part in parts if part.tpot_s is not None]
    ttfts = [(part.ttft_s, part) for part in parts if part.ttft_s is not None]
    tightest = min(tpots + ttfts, key=lambda item: item[0], default=None)
    return PlaceLoad(
        rate_rps=total,
        prompt_tokens=sum((part.rate_rps * part.prompt_tokens for part in parts), Fraction(0)) / total,
        output_tokens=sum((part.rate_rps * part.output_tokens for part in parts), Fraction(0)) / total,
        tpot_s=min((target for target, _ in tpots), default=None),
        ttft_s=min((target for target, _ in ttfts), default=None),
        span=parts[0].span,
        slo_span=None if tightest is None else tightest[1].slo_span,
        parts=tuple(parts),
    )


def all_parts(problem: PlaceProblem) -> list[PlacePart]:
    """Of all apps that expect anything."""
    return [part for chain in problem.chains if chain.load is not None for part in chain.load.parts]


def with_served(problem: PlaceProblem, served: Mapping[str, Fraction]) -> PlaceProblem:
    """Of each app a part of its requests; all, if it is not named. Who is served nothing has no targets, either."""
    chains = []
    for chain in problem.chains:
        given = () if chain.load is None else chain.load.parts
        if any(part.app in served for part in given):
            parts = [replace(part, rate_rps=part.rate_rps * served.get(part.app, Fraction(1))) for part in given]
            parts = [part for part in parts if part.rate_rps]
            chain = replace(chain, load=merged(parts) if parts else None)
        chains.append(chain)
    return replace(problem, chains=tuple(chains))


def are_speeds_known(problem: PlaceProblem) -> bool:
    """Whether anything is known of how fast any device is."""
    return any(device.kind in problem.speeds for device in problem.devices)


def without_unknown(problem: PlaceProblem) -> PlaceProblem:
    """Without loads where nothing is known of speeds: then memory decides (BC404)."""
    if are_speeds_known(problem):
        return problem
    return replace(problem, chains=tuple(replace(chain, load=None) for chain in problem.chains))


def unserved_rps(problem: PlaceProblem, served: Mapping[str, Fraction]) -> Fraction:
    """Requests a second of all apps that are left out. ``served``: the part of each that is not."""
    return sum((part.rate_rps * (1 - served.get(part.app, Fraction(1))) for part in all_parts(problem)), Fraction(0))
