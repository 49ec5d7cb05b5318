"""A placement problem as a :class:`Packing`: bytes from the layout that the runtime allocates by, time from its work.

In: a problem and its sizes by width of cell. Out: the packing. Loads are split into equal units of at most a fifth of
a device, so that a hot chain can run in several places; a chain of which nothing is expected is one unit without
time. Memory errs on the safe side: in each KV group one sequence of full length fits beside what is expected in
flight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Final

from blockc.ir.layout import gather_bytes
from blockc.place.cells import Views
from blockc.place.problem import PlaceChain, PlaceDevice, PlaceProblem
from blockc.place.sizes import Sizes, kv_pages, limited_blocks
from blockc.place.traffic.goals import MICRO
from blockc.place.traffic.packing import PARTS, Block, CellKind, Group, Packing
from blockc.place.traffic.times import (
    IN_FLIGHT_MARGIN,
    ChainTimes,
    busy_limit,
    cadence_s,
    chain_times,
    in_flight,
    sides_sweep_s,
    sweep_s,
)

# Of a device: smaller ones were no better and slower (0.1 and 0.05 were tried).
UNIT: Final = 0.2
_MOST_UNITS: Final = 256
_NS: Final = 10**9


def packing_of(views: Views) -> Packing:
    """Count."""
    problem = views.problem
    sets = _Sets(problem, views.at(1))
    blocks = views.blocks()
    kinds: list[CellKind] = []
    number: dict[tuple[str, int, Fraction | None, int], int] = {}
    nodes: dict[str, int] = {}
    found: list[Block] = []
    for block in blocks:
        device = problem.devices[block.devices[0]]
        own = []
        for width in block.widths:
            key = (device.kind, block.offered_bytes, device.price_per_hour, width)
            if key not in number:
                number[key] = len(kinds)
                kinds.append(_kind(views, sets, device, width))
            own.append(number[key])
        found.append(Block(devices=block.devices, kinds=tuple(own), node=nodes.setdefault(device.node, len(nodes))))
    return _split(_groups(problem, sets), tuple(kinds), tuple(found), problem)


def kv_demand(problem: PlaceProblem, chain: PlaceChain, group: int) -> int:
    """Pages of a KV group that the whole expected load of a chain has in flight."""
    if chain.load is None:
        return 0
    tokens = float(chain.load.prompt_tokens + chain.load.output_tokens / 2)
    pages = math.ceil(min(tokens, chain.max_model_len) / problem.groups[group].page_tokens)
    return math.ceil(IN_FLIGHT_MARGIN * in_flight(chain.load) * pages)


class _Sets:
    """Items: what the same chains need. ``of[c]``: those of chain c."""

    def __init__(self, problem: PlaceProblem, sizes: Sizes) -> None:
        self._index: dict[frozenset[int], int] = {}
        through: dict[int, list[int]] = {}
        using: dict[int, list[int]] = {}
        for number, chain in enumerate(problem.chains):
            for segment in chain.segments:
                through.setdefault(segment, []).append(number)
            for group in chain.groups:
                using.setdefault(group, []).append(number)
        self.bundles = [self._item(bundle.chains) for bundle in sizes.bundles]
        self.segments = {segment: self._item(chains) for segment, chains in sorted(through.items())}
        self.kv_groups = {group: self._item(chains) for group, chains in sorted(using.items())}
        self.own = {number: self._item([number]) for number, chain in enumerate(problem.chains) if chain.side_bytes}
        self.of: list[list[int]] = [[] for _ in problem.chains]
        # Those that anything is expected of.
        self.active: set[int] = set()
        for chains, item in self._index.items():
            if any(problem.chains[number].load is not None for number in chains):
                self.active.add(item)
            for number in sorted(chains):
                self.of[number].append(item)

    def _item(self, chains: Sequence[int] | frozenset[int]) -> int:
        return self._index.setdefault(frozenset(chains), len(self._index))

    def __len__(self) -> int:
        return len(self._index)


def _groups(problem: PlaceProblem, sets: _Sets) -> list[Group]:
    devices: dict[int, frozenset[int]] = {}
    apart: dict[int, set[int]] = {}
    copies: dict[tuple[str, int], int] = {}
    for rule in problem.rules:
        if rule.kind in ("replicas", "nodes"):
            copies |= {(rule.kind, c): max(rule.count, copies.get((rule.kind, c), 1)) for c in rule.chains}
            continue
        others = [] if rule.kind == "pin" else list(rule.chains)
        if rule.kind == "alone":
            others = [number for number in range(len(problem.chains)) if number not in rule.chains]
        for chain in rule.chains:
            if rule.kind == "pin":
                devices[chain] = devices.get(chain, rule.devices) & rule.devices
            apart.setdefault(chain, set()).update(other for other in others if other != chain)
            if rule.kind == "alone":
                for other in others:
                    apart.setdefault(other, set()).add(chain)
    return [
        Group(
            units=1,
            tau_ns=None if chain.load is None else math.floor(cadence_s(chain.load) * _NS),
            items=tuple(sorted(sets.of[number])),
            milli_tokens=0 if chain.load is None else math.ceil(1000 * chain.load.rate_rps * chain.load.output_tokens),
            devices=devices.get(number),
            apart=frozenset(apart.get(number, ())),
            replicas=copies.get(("replicas", number), 1),
            nodes=copies.get(("nodes", number), 1),
        )
        for number, chain in enumerate(problem.chains)
    ]


def _kind(views: Views, sets: _Sets, device: PlaceDevice, width: int) -> CellKind:
    """Whole loads, not yet split into units."""
    problem, sizes, kind = views.problem, views.at(width), device.kind
    item_bytes = [0] * len(sets)
    item_s = [0.0] * len(sets)
    turning_bytes = sum(bundle.nbytes for bundle in sizes.bundles if bundle.turns)
    blocks_bytes = limited_blocks(turning_bytes, problem)
    turns = blocks_bytes < turning_bytes + problem.blocks_reading_bytes
    for item, bundle in zip(sets.bundles, sizes.bundles, strict=True):
        item_bytes[item] += 0 if turns and bundle.turns else bundle.nbytes
    for group, item in sets.kv_groups.items():
        item_bytes[item] += _longest(sizes, group) * sizes.problem.groups[group].page_bytes
    limit_bytes = problem.sides_limit_bytes
    limited = limit_bytes is not None and sum(chain.side_bytes for chain in sizes.problem.chains) > limit_bytes
    for chain, item in sets.own.items():
        item_bytes[item] += 0 if limited else sizes.problem.chains[chain].side_bytes
    rates = problem.rates_of(kind, width)
    times: list[ChainTimes | None] = [None] * len(problem.chains)
    if rates is not None and problem.work is not None:
        work = problem.work
        for segment, item in sets.segments.items():
            item_s[item] += sweep_s(work.segments[segment], rates)
        for chain, item in sets.own.items():
            item_s[item] += sides_sweep_s(work.chains[chain], rates)
        times = [
            None
            if chain.load is None
            else chain_times(own, work.segments, rates, chain.load, step_tokens=problem.max_batched_tokens)
            for chain, own in zip(problem.chains, work.chains, strict=True)
        ]
    free = 1 - float(problem.headroom)
    return CellKind(
        device=kind,
        width=width,
        offered_bytes=device.offered_bytes
        - _copied_bytes(sizes)
        - (limit_bytes if limited and limit_bytes is not None else 0)
        - (blocks_bytes if turns else problem.blocks_reading_bytes),
        step_ns=0 if rates is None else math.ceil(rates.step_s * _NS),
        item_bytes=tuple(item_bytes),
        item_ns=tuple(math.ceil(seconds * _NS) if item in sets.active else 0 for item, seconds in enumerate(item_s)),
        unit_bytes=tuple(
            sum(kv_demand(problem, chain, group) * _page_bytes(sizes, group) for group in chain.groups)
            for chain in problem.chains
        ),
        unit_parts=tuple(
            0
            if chain.load is None or own is None
            else math.ceil(float(chain.load.rate_rps) * own.request_s(chain.load) * PARTS)
            for chain, own in zip(problem.chains, times, strict=True)
        ),
        limit=tuple(_limit(chain, own, free) for chain, own in zip(problem.chains, times, strict=True)),
        activation=sizes.activation_bytes,
        price=0 if device.price_per_hour is None else math.ceil(device.price_per_hour * MICRO) * width,
        unit_sent=tuple(_sent(problem, chain, width) for chain in problem.chains),
    )


def _sent(problem: PlaceProblem, chain: PlaceChain, width: int) -> int:
    """Bytes a second: a ring adds up hidden states, so that each device passes them on twice, less its own part."""
    if chain.load is None or problem.work is None:
        return 0
    token_bytes = sum(problem.work.segments[segment].reduce_bytes for segment in chain.segments)
    tokens = chain.load.rate_rps * (chain.load.prompt_tokens + chain.load.output_tokens)
    return math.ceil(2 * (width - 1) * token_bytes * tokens)


def _longest(sizes: Sizes, group: int) -> int:
    """Pages of the longest sequence of any chain."""
    return max(pages.get(group, 0) for pages in sizes.pages)


def _page_bytes(sizes: Sizes, group: int) -> int:
    """Of a page and of the copy that attention makes of one layer's part of it."""
    own = sizes.problem.groups[group]
    return own.page_bytes + -(-own.page_bytes // own.layers)


def _copied_bytes(sizes: Sizes) -> int:
    """Of the copy of the longest sequence's pages, of whichever group that is largest."""
    pools = [kv_pages(own, _longest(sizes, group)) for group, own in enumerate(sizes.problem.groups)]
    return gather_bytes(pools, spare_bytes=sizes.problem.spare_bytes)


def _limit(chain: PlaceChain, times: ChainTimes | None, free: float) -> int:
    if chain.load is None:
        return PARTS
    limit = None if times is None else busy_limit(times.prompt_s, chain.load)
    return 0 if limit is None else math.floor(limit * free * PARTS)


def _split(
    groups: list[Group], kinds: tuple[CellKind, ...], blocks: tuple[Block, ...], problem: PlaceProblem
) -> Packing:
    """Whole loads into units: as many as it takes for one to be small and to fit."""
    whole = Packing(
        groups=tuple(groups), items=0 if not kinds else len(kinds[0].item_bytes), kinds=kinds, blocks=blocks,
        rows=problem.max_rows, goals=problem.objective,
    )  # fmt: skip
    units = [_unit_count(whole, number) for number in range(len(groups))]
    return replace(
        whole,
        groups=tuple(
            replace(group, units=count, milli_tokens=-(-group.milli_tokens // count))
            for group, count in zip(groups, units, strict=True)
        ),
        kinds=tuple(
            replace(
                kind,
                unit_bytes=tuple(-(-nbytes // count) for nbytes, count in zip(kind.unit_bytes, units, strict=True)),
                unit_parts=tuple(-(-parts // count) for parts, count in zip(kind.unit_parts, units, strict=True)),
                unit_sent=tuple(-(-sent // count) for sent, count in zip(kind.unit_sent, units, strict=True)),
            )
            for kind in kinds
        ),
    )


def _unit_count(packing: Packing, number: int) -> int:
    group = packing.groups[number]
    if group.tau_ns is None:
        return group.copies
    needed = []
    for kind in packing.kinds:
        room = kind.limit[number] - kind.fixed_parts(kind.path_ns(group), group.tau_ns)
        memory = kind.offered_bytes - kind.activation[number] - kind.path_bytes(group)
        if room <= 0 or memory <= 0:
            continue
        needed.append(
            max(
                1,
                -(-kind.unit_parts[number] * kind.width // math.floor(UNIT * PARTS)),
                -(-kind.unit_parts[number] // room),
                -(-kind.unit_bytes[number] // memory),
                -(-packing.paced_parts(kind, number) // kind.limit[number]),
            )
        )
    return max(group.copies, min(_MOST_UNITS, min(needed, default=1)))
