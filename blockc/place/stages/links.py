"""What lies between two stages: how fast hidden states get from one to the next.

In: a problem and the devices of stages. Out: a link for each hop; None where nothing is known of it, and nothing at all
where nothing travels. Within a node devices have the link of their kind, or the spec's; between nodes only the spec's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from blockc.cost.hops import HopLink
from blockc.cost.rates import LINK_LATENCY_S
from blockc.place.problem import PlaceProblem


def hop_links(problem: PlaceProblem, stages: Sequence[Sequence[int]]) -> tuple[HopLink | None, ...] | None:
    """``stages``: devices of each. None: two of them follow one another on nodes between which nothing travels."""
    found: list[HopLink | None] = []
    for source, target in pairwise(stages):
        devices = problem.devices[source[0]], problem.devices[target[0]]
        if devices[0].node != devices[1].node:
            if problem.node_bytes_per_s is None:
                return None
            found.append(HopLink(bytes_per_s=problem.node_bytes_per_s, latency_s=problem.node_latency_s))
            continue
        speed = problem.speeds.get(devices[0].kind)
        rate = None if speed is None else speed.link_bytes_per_s
        found.append(None if rate is None else HopLink(bytes_per_s=rate, latency_s=LINK_LATENCY_S))
    return tuple(found)
