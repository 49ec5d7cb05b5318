"""What no plan does without that divides the same chains: the least of their stages, and of all else beside them.

In: a problem, which chains run in stages, the solver's entry of the rest. Out: a bound on devices or money. A device is
in a pipeline or in a cell, never in both, so the two add up. Of pipelines: every weight, fine-tune and page once, on
devices that lose the least workspace; and every request's time in all stages, where it takes the least of devices. A
pipeline of S stages, C copies and width w has ``S * C * w`` devices; over its stages, sweeps take ``sweep / target`` of
each on average, so ``S * C >= rate * request / (limit - sweep / target)``, and what chains need adds up. Of all else:
the closed form, or counts of cells (`traffic.aggregate`), on all devices; by bytes where bytes placed it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final, Literal

from blockc.ir.layout import ResidentTensor
from blockc.place.bound import devices_bound
from blockc.place.cells import WIDTHS, Views
from blockc.place.loads import without_unknown
from blockc.place.problem import PlaceDevice, PlaceProblem
from blockc.place.stages.parts import Parts
from blockc.place.stages.rest import rest_of
from blockc.place.stages.staged import wanted_pages
from blockc.place.traffic.aggregate import aggregate, closed_form
from blockc.place.traffic.goals import COUNTED, most_spent, said
from blockc.place.traffic.times import DEFAULT_BUSY_LIMIT, cadence_s
from blockc.place.traffic.units import packing_of
from blockc.plan import SolverEntry

_COUNTS_UNITS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StagesBound:
    """``kind``: ``bytes`` where the sum of all bytes proves as much, else ``stages``."""

    value: float
    kind: Literal["bytes", "stages"]


def stages_bound(views: Views, divided: Set[int], rest: SolverEntry | None, value: float) -> StagesBound:
    """Of the first goal, no more than a plan's ``value`` of it. ``divided``: chains that run in stages in any plan."""
    problem, goal = views.problem, views.problem.objective[0]
    if goal not in COUNTED:
        return StagesBound(value=0.0, kind="bytes")
    stages = least_of_stages(problem, sorted(divided), goal)
    found = stages + (0.0 if rest is None else _least_of_rest(problem, divided, rest, goal, value - stages))
    nbytes = float(devices_bound(views.at(1))) if goal == "devices" else 0.0
    return StagesBound(value=min(max(found, nbytes), value), kind="stages" if found > nbytes else "bytes")


def least_of_stages(problem: PlaceProblem, chains: Sequence[int], goal: str) -> float:
    """What the devices of all pipelines weigh at least: whole devices, or money."""
    kinds = {(own.kind, own.offered_bytes, own.price_per_hour): own for own in problem.devices}
    found = [
        _by_bytes(problem, chains, list(kinds.values()), goal),
        sum(_by_work(problem, chain, list(kinds.values()), goal) for chain in chains),
        _replicas(problem, chains) * (problem.stages or 2) * min(_weight(own, goal) for own in kinds.values()),
    ]
    return float(math.ceil(max(found) - 1e-6)) if goal == "devices" else max(found)


def _replicas(problem: PlaceProblem, chains: Sequence[int]) -> int:
    counts = [rule.count for rule in problem.rules if rule.kind == "replicas" and set(rule.chains) & set(chains)]
    return max(counts, default=1)


def _weight(device: PlaceDevice, goal: str) -> float:
    return 1.0 if goal == "devices" else float(device.price_per_hour or 0)


def _by_bytes(problem: PlaceProblem, chains: Sequence[int], kinds: Sequence[PlaceDevice], goal: str) -> float:
    """Widths only add to it: a share is no less than its part of the whole."""
    tensors: set[ResidentTensor] = set()
    pages: dict[int, int] = {}
    for chain in chains:
        parts = Parts(problem, (chain,), 1)
        wanted = wanted_pages(parts, 1)
        tensors |= {tensor for block in problem.chains[chain].blocks for tensor in block.tensors}
        for group, layers in parts.layers(0, parts.blocks).items():
            entry = problem.groups[group]
            nbytes = wanted[group] * (entry.page_bytes // entry.layers * layers)
            pages[group] = max(pages.get(group, 0), nbytes)
    needed = sum(tensor.nbytes for tensor in tensors) + sum(pages.values())
    needed += sum(problem.chains[chain].side_bytes for chain in chains)
    working = min(block.activation_bytes for chain in chains for block in problem.chains[chain].blocks)
    rooms = [(own.offered_bytes - working, own) for own in kinds if own.offered_bytes > working]
    return min((needed * _weight(own, goal) / room for room, own in rooms), default=0.0)


def _by_work(problem: PlaceProblem, chain: int, kinds: Sequence[PlaceDevice], goal: str) -> float:
    load = problem.chains[chain].load
    if load is None or problem.work is None:
        return 0.0
    limit = DEFAULT_BUSY_LIMIT * (1 - float(problem.headroom))
    found = []
    for own in kinds:
        speed = problem.speeds.get(own.kind)
        if speed is None or (speed.link_bytes_per_s is None and _share_nodes(problem, own.kind)):
            return 0.0  # where nothing is known of a way, `staged` goes by bytes
        for width in WIDTHS:
            rates = problem.rates_of(own.kind, width)
            if rates is None:
                continue
            parts = Parts(problem, (chain,), width)
            room = limit - parts.sweep_s(0, parts.blocks, rates) / cadence_s(load)
            request_s = parts.times(chain, 0, parts.blocks, rates).request_s(load)
            if room > 0:
                found.append(width * float(load.rate_rps) * request_s / room * _weight(own, goal))
    return min(found, default=0.0)


def _share_nodes(problem: PlaceProblem, kind: str) -> bool:
    """Whether two devices of a kind are on one node."""
    nodes = [own.node for own in problem.devices if own.kind == kind]
    return len(set(nodes)) < len(nodes)


def _least_of_rest(problem: PlaceProblem, divided: Set[int], rest: SolverEntry, goal: str, value: float) -> float:
    """On all devices: which of them pipelines take is not known to a bound. ``value``: what a plan has of it."""
    left = Views(problem=rest_of(problem, divided, ()))
    if not rest.values:  # placed by bytes
        return float(devices_bound(left.at(1))) if goal == "devices" else 0.0
    packing = packing_of(left.with_problem(without_unknown(left.problem)))
    closed = closed_form(packing)
    if closed.infeasible:
        return 0.0
    least, most = closed.value, most_spent(packing)
    if value - said(goal, least) > problem.gap * value:
        counted = aggregate(packing, units=_COUNTS_UNITS, least=least, most=most, seed=problem.seed)
        least = least if counted.infeasible else max(least, counted.value)
    return said(goal, least)
