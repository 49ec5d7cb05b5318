"""One pipeline: some chains, divided into stages on given devices.

In: a problem, chains, devices by stage, into how many copies the load is divided. Out: where stages begin and how busy
they are; None if the chains do not fit, or cannot keep their targets. A token waits for a sweep of each stage and for
the way between them, so the cadence is what is left of its target, divided by the stages (`placement.md`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from blockc.cost import DeviceRates
from blockc.cost.hops import HopLink
from blockc.place.problem import PlaceProblem
from blockc.place.stages.links import hop_links
from blockc.place.stages.partition import PartCost, partition
from blockc.place.stages.parts import Parts
from blockc.place.traffic.times import (
    DEFAULT_BUSY_LIMIT,
    IN_FLIGHT_MARGIN,
    cadence_s,
    decoded_per_s,
    first_token_s,
    in_flight,
    paced_s,
)

PARTS_PER_ONE: Final = 10**7
# Of a link's rate that hidden states may take.
_LINK_LIMIT: Final = 0.8
# What floating point adds to sums.
_SLACK: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """``begins``: the first block of each stage, and their number at the end. Loads are those of one of ``copies``.

    ``tau_s`` None: nothing is expected. ``traffic`` and ``sweeps``: parts of each stage's time. ``ttft_s``: by chain.
    """

    parts: Parts
    stages: tuple[tuple[int, ...], ...]
    begins: tuple[int, ...]
    copies: int
    tau_s: float | None = None
    tpot_s: float | None = None
    limit: float = DEFAULT_BUSY_LIMIT
    traffic: tuple[float, ...] = ()
    sweeps: tuple[float, ...] = ()
    ttft_s: dict[int, float] | None = None
    rows: float = 0.0

    @property
    def chains(self) -> tuple[int, ...]:
        """What it runs."""
        return self.parts.chains


def staged(
    problem: PlaceProblem, parts: Parts, stages: Sequence[tuple[int, ...]], *, copies: int,
    begins: tuple[int, ...] | None = None,
) -> Staged | None:  # fmt: skip
    """Divide. ``begins``: where stages begin, if that is known already."""
    links = hop_links(problem, stages)
    if links is None:
        return None
    device = problem.devices[stages[0][0]]
    pages = wanted_pages(parts, copies)
    whole = parts.layout(0, parts.blocks, pages)  # what stages have adds up to it at least
    if whole.weights_bytes + whole.sides_bytes + whole.kv_bytes > len(stages) * device.offered_bytes:
        return None

    def used(first: int, stop: int) -> int | None:
        nbytes = parts.layout(first, stop, pages).used_bytes
        return nbytes if nbytes <= device.offered_bytes else None

    loads = {chain: load for chain in parts.chains if (load := problem.chains[chain].load) is not None}
    rates = problem.rates_of(device.kind, parts.width)
    if not loads or rates is None or problem.work is None or any(link is None for link in links):
        found = _begins(parts, len(stages), used, begins)
        if found is None:
            return None
        return Staged(parts=parts, stages=tuple(stages), begins=found, copies=copies)
    known = [link for link in links if link is not None]
    tokens_per_s = sum(map(decoded_per_s, loads.values())) / copies
    target_s = paced_s(min(map(cadence_s, loads.values())), tokens_per_s, problem.max_rows)
    rows = tokens_per_s * target_s
    state_bytes = max(parts.state_bytes(first) for first in range(1, parts.blocks)) if parts.blocks > 1 else 0
    tokens = sum(float(load.rate_rps * (load.prompt_tokens + load.output_tokens)) for load in loads.values()) / copies
    if any(tokens * state_bytes > _LINK_LIMIT * link.bytes_per_s for link in known):
        return None
    hops_s = sum(link.seconds(state_bytes * max(1.0, rows / len(stages))) for link in known)
    tau_s = (target_s - hops_s) / len(stages)
    if tau_s <= 0:
        return None
    limit = DEFAULT_BUSY_LIMIT * (1 - float(problem.headroom))

    def busy(first: int, stop: int) -> tuple[float, float]:
        sweeps = (rates.step_s + parts.sweep_s(first, stop, rates)) / tau_s
        own = {chain: parts.times(chain, first, stop, rates).request_s(load) for chain, load in loads.items()}
        return sum(float(load.rate_rps) / copies * own[chain] for chain, load in loads.items()), sweeps

    def cost(first: int, stop: int) -> int | None:
        together = sum(busy(first, stop))
        fits = together <= limit and used(first, stop) is not None
        return math.ceil(together * PARTS_PER_ONE) if fits else None

    if sum(busy(0, parts.blocks)) > len(stages) * limit + _SLACK:
        return None
    begins = _begins(parts, len(stages), cost, begins)
    if begins is None:
        return None
    loaded = [busy(first, stop) for first, stop in pairwise(begins)]
    most = max(map(sum, loaded))
    ttft_s = {chain: _first_token_s(problem, parts, rates, begins, chain, most, tau_s, known) for chain in loads}
    if any(load.ttft_s is not None and ttft_s[chain] > load.ttft_s for chain, load in loads.items()):
        return None
    return Staged(
        parts=parts, stages=tuple(stages), begins=begins, copies=copies, tau_s=tau_s,
        tpot_s=tau_s * len(stages) + hops_s, limit=limit, traffic=tuple(item[0] for item in loaded),
        sweeps=tuple(item[1] for item in loaded), ttft_s=ttft_s, rows=rows,
    )  # fmt: skip


def _begins(parts: Parts, stages: int, cost: PartCost, given: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The best, or those that are given if every stage of them fits."""
    if given is None:
        return partition(parts.blocks, stages, cost)
    holds = len(given) == stages + 1 and given[-1] == parts.blocks
    return given if holds and all(cost(first, stop) is not None for first, stop in pairwise(given)) else None


def wanted_pages(parts: Parts, copies: int) -> dict[int, int]:
    """By group: one sequence of full length, and beside it what is in flight of one copy's load."""
    problem, least = parts.problem, parts.least_pages
    expected = expected_pages(parts, copies)
    return {group: min(pages * problem.max_rows, pages + expected.get(group, 0)) for group, pages in least.items()}


def expected_pages(parts: Parts, copies: int) -> dict[int, int]:
    """By group, what is in flight."""
    problem = parts.problem
    found: dict[int, float] = {}
    for chain in parts.chains:
        own = problem.chains[chain]
        if own.load is None:
            continue
        tokens = min(float(own.load.prompt_tokens + own.load.output_tokens / 2), own.max_model_len)
        for group in own.groups:
            pages = math.ceil(tokens / problem.groups[group].page_tokens)
            found[group] = found.get(group, 0.0) + IN_FLIGHT_MARGIN * in_flight(own.load) / copies * pages
    return {group: math.ceil(pages) for group, pages in found.items()}


def _first_token_s(
    problem: PlaceProblem, parts: Parts, rates: DeviceRates, begins: Sequence[int], chain: int, busy: float,
    tau_s: float, links: Sequence[HopLink],
) -> float:  # fmt: skip
    """It waits as at the busiest stage alone, then passes the others and the way between them."""
    load = problem.chains[chain].load
    assert load is not None, "first tokens are of chains of which something is expected"
    own = sorted(parts.times(chain, first, stop, rates).prompt_s for first, stop in pairwise(begins))
    travel_s = sum(
        link.seconds(float(load.prompt_tokens) * parts.state_bytes(first))
        for link, first in zip(links, begins[1:-1], strict=True)
    )
    return first_token_s(own[-1], busy, tau_s) + sum(own[:-1]) + (len(own) - 1) * tau_s + travel_s
