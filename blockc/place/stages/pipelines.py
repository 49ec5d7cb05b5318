"""Which chains run as pipelines, into how many stages they are divided, and on which devices.

In: a problem. Out: pipelines; empty if none is called for, None if some chain fits no pipeline either. Chains on paths
with equally many blocks share one where that takes fewer devices. The fewest devices are taken, of equals the fewest
nodes, then stages. Invariant: no device is in two pipelines; deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

from blockc.place.cells import WIDTHS, Views
from blockc.place.problem import PlaceProblem
from blockc.place.stages.links import hop_links
from blockc.place.stages.parts import Parts
from blockc.place.stages.staged import Staged, staged

_MOST_STAGES: Final = 64
# Copies of a pipeline that are tried beyond those that are asked for.
_MORE_COPIES: Final = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A division, and the devices of each copy, stage by stage."""

    staged: Staged
    copies: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def devices(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(device for copy in self.copies for stage in copy for device in stage)


# A pipeline on some of the free devices, to the same on those of them that it is to be on.
Named = Callable[[Pipeline, Collection[int]], Pipeline]


def staged_chains(views: Views) -> tuple[int, ...]:
    """Those that are to run as pipelines: what fits no cell of a node, or all if the spec asks for stages."""
    problem = views.problem
    able = [index for index, chain in enumerate(problem.chains) if chain.blocks]
    if problem.stages is None or len(problem.devices) == 1:
        return ()
    if problem.stages:
        return tuple(able)
    blocks = views.blocks()
    return tuple(chain for chain in able if all(views.least_width(chain, block) is None for block in blocks))


def pipelines_of(
    views: Views, kept: Sequence[Pipeline] = (), named: Named = lambda pipeline, _: pipeline
) -> tuple[Pipeline, ...] | None:
    """Divide all that is to be, the first chains first. ``kept``: pipelines that stay as they are."""
    problem = views.problem
    every = [device for device in range(len(problem.devices)) if all(device not in own.devices for own in kept)]
    groups: list[tuple[tuple[int, ...], Pipeline]] = []
    for chain in staged_chains(views):
        if any(chain in own.staged.chains for own in kept):
            continue
        alone = best(problem, (chain,), every)
        if alone is None:
            return None
        for place, (members, own) in enumerate(groups):
            together = (*members, chain)
            if not may_share(problem, members, chain):
                continue
            joined = best(problem, together, every)
            if joined is not None and len(joined.devices) < len(own.devices) + len(alone.devices):
                groups[place] = together, joined
                break
        else:
            groups.append(((chain,), alone))
    free = set(every)
    found = list(kept)
    for members, _ in groups:
        chosen = best(problem, members, sorted(free))
        if chosen is None:
            return None
        chosen = named(chosen, sorted(free))
        free -= set(chosen.devices)
        found.append(chosen)
    return tuple(found)


def may_share(problem: PlaceProblem, members: Sequence[int], chain: int) -> bool:
    """Whether a chain may run with others in one pipeline."""
    if len(problem.chains[members[0]].blocks) != len(problem.chains[chain].blocks):
        return False
    for rule in problem.rules:
        inside = [member in rule.chains for member in members]
        if rule.kind == "apart" and chain in rule.chains and any(inside):
            return False
        if rule.kind == "alone" and any(item != (chain in rule.chains) for item in inside):
            return False
    return True


def best(problem: PlaceProblem, chains: tuple[int, ...], free: Collection[int]) -> Pipeline | None:
    """On the fewest of these devices."""
    free = allowed(problem, chains, free)
    least, least_nodes = copies_asked(problem, chains)
    most = least + (_MORE_COPIES if any(problem.chains[chain].load is not None for chain in chains) else 0)
    found: list[tuple[tuple[Fraction, int], Pipeline]] = []
    for copies in range(least, most + 1):
        options = _options(problem, chains, free, copies, least_nodes)
        first = next((item for item in options if nodes_of(problem, item) >= least_nodes), None)
        if first is not None:
            found.append(((_spent(problem, first), copies), first))
    return min(found, key=lambda item: item[0])[1] if found else None


def _spent(problem: PlaceProblem, pipeline: Pipeline) -> Fraction:
    """Devices, or money if that is what there is to be little of."""
    prices = [problem.devices[device].price_per_hour for device in pipeline.devices]
    known = [price for price in prices if price is not None]
    if problem.objective[0] == "cost" and len(known) == len(prices):
        return sum(known, Fraction(0))
    return Fraction(len(prices))


def allowed(problem: PlaceProblem, chains: Sequence[int], devices: Collection[int]) -> list[int]:
    """Those of the devices that no pin keeps the chains from."""
    pins = [rule.devices for rule in problem.rules if rule.kind == "pin" and set(rule.chains) & set(chains)]
    return [device for device in devices if all(device in pin for pin in pins)]


def nodes_of(problem: PlaceProblem, pipeline: Pipeline) -> int:
    """On how many nodes it is."""
    return len({problem.devices[device].node for device in pipeline.devices})


def copies_asked(problem: PlaceProblem, chains: Sequence[int]) -> tuple[int, int]:
    """How many copies there are to be at least, and on how many nodes."""
    return _asked(problem, chains, "replicas", "nodes"), _asked(problem, chains, "nodes")


def _asked(problem: PlaceProblem, chains: Sequence[int], *kinds: str) -> int:
    """In how many copies, or on how many nodes, rules of these kinds want it to be."""
    return max(
        (rule.count for rule in problem.rules if rule.kind in kinds and set(rule.chains) & set(chains)), default=1
    )


def _options(
    problem: PlaceProblem, chains: tuple[int, ...], free: Collection[int], copies: int, least_nodes: int
) -> Iterator[Pipeline]:
    """Those that hold, what takes the fewest devices first."""
    blocks = len(problem.chains[chains[0]].blocks)
    parts = {width: Parts(problem, chains, width) for width in WIDTHS}
    shapes: list[tuple[int, int, int, int, list[tuple[tuple[int, ...], ...]]]] = []
    for number, nodes in enumerate(alike_devices(problem, free)):
        for width in WIDTHS:
            count = sum(len(own) // width for own in nodes)
            wanted = [problem.stages] if problem.stages else range(2, min(_MOST_STAGES, blocks, count) + 1)
            for stages in wanted:
                taken = _taken(nodes, width, stages, copies, least_nodes)
                if taken is not None:
                    spread = max(len({problem.devices[s[0]].node for s in copy}) for copy in taken)
                    shapes.append((width * stages, spread, stages, number, taken))
    for _, _, _, _, taken in sorted(shapes):
        found = judged(problem, parts[len(taken[0][0])], taken)
        if found is not None:
            yield found


def judged(
    problem: PlaceProblem, parts: Parts, copies: Sequence[tuple[tuple[int, ...], ...]],
    begins: tuple[int, ...] | None = None,
) -> Pipeline | None:  # fmt: skip
    """Divided among these devices, if it holds there. ``begins``: where stages begin, if that is known already."""
    # Of copies on other nodes, hops may take other links: each such is judged, and the worst is what is said.
    alike: dict[object, tuple[tuple[int, ...], ...]] = {}
    for copy in copies:
        alike.setdefault(hop_links(problem, copy), copy)
    divided = [staged(problem, parts, copy, copies=len(copies), begins=begins) for copy in alike.values()]
    every = [item for item in divided if item is not None]
    if len(every) < len(divided):
        return None
    worst = max(every, key=lambda item: max(map(sum, zip(item.traffic, item.sweeps, strict=True)), default=0.0))
    return Pipeline(staged=replace(worst, stages=copies[0]), copies=tuple(copies))


def alike_devices(problem: PlaceProblem, free: Collection[int]) -> list[list[list[int]]]:
    """Devices of one kind, node by node, for each kind; all that a stage could be on is alike."""
    found: dict[tuple[object, ...], dict[str, list[int]]] = {}
    for index in sorted(free):
        own = problem.devices[index]
        key = (own.kind, own.memory_bytes, own.reserve_bytes, own.price_per_hour)
        found.setdefault(key, {}).setdefault(own.node, []).append(index)
    return [list(nodes.values()) for nodes in found.values()]


def _taken(
    nodes: Sequence[Sequence[int]], width: int, stages: int, copies: int, least_nodes: int
) -> list[tuple[tuple[int, ...], ...]] | None:
    """Cells for the stages of each copy: on one node where one has room, the smallest such; else the largest first.

    A node that no copy is on yet comes before others while there are to be more.
    """
    left = [[tuple(own[at : at + width]) for at in range(0, len(own) - width + 1, width)] for own in nodes]
    used: set[int] = set()
    found = []
    for _ in range(copies):
        if sum(map(len, left)) < stages:
            return None
        enough = [node for node, cells in enumerate(left) if len(cells) >= stages]
        new = [node for node in enough if node not in used] if len(used) < least_nodes else []
        if enough:
            order = [min(new or enough, key=lambda node: len(left[node]))]
        else:
            order = sorted(range(len(left)), key=lambda node: -len(left[node]))
        copy: list[tuple[int, ...]] = []
        for node in order:
            cells = left[node][: stages - len(copy)]
            copy += cells
            del left[node][: len(cells)]
            used |= {node} if cells else set()
        found.append(tuple(copy))
    return found
