"""A plan of several devices as one plan for each of its instances, and a plan of several nodes as one for each node.

In: a plan whose instances are on one device each. Out: for each what it runs, as a plan by itself, and whose chains,
apps and KV groups those are. Invariants: a part holds together as any plan does; chains, domains, blocks and tensors
keep their digests, so that parts of one plan read the same zoo; and all parts bind what the whole plan binds.

What tells of the whole deployment stays as it is: tenants with their quotas and bytes (which add up to ``ours_bytes``
over all of them), baselines, the price, and how the placement was found. Numbers of banks stay, too: they are names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from blockc.ir.layout import ResidentTensor, block_tensors
from blockc.ir.parse import parse_structure
from blockc.plan.app_entries import ModelEntry
from blockc.plan.graph_entries import ChainEntry, CutEntry, SegmentEntry
from blockc.plan.laminar import find_crossing
from blockc.plan.model import ExecutionPlan
from blockc.plan.place_entries import InstanceEntry, RouteEntry
from blockc.plan.turns import segment_blocks, turning_tensors

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one instance of a plan runs, as a plan by itself: an engine serves it as it would any plan of one device.

    ``instance`` and ``device`` are indices in the whole plan; ``chains`` and ``apps``: of the whole plan -> of the
    part; ``groups``: KV groups of the part, by index in the whole plan.
    """

    instance: int
    device: int
    plan: ExecutionPlan
    chains: Mapping[int, int]
    apps: Mapping[int, int]
    groups: tuple[int, ...]


def parts_of(plan: ExecutionPlan) -> tuple[Part, ...]:
    """One for each instance, in order; a plan of one instance is its own part.

    Raises ValueError for an instance on several devices, and for a device that several have.
    """
    used = Counter(device for instance in plan.instances for device in instance.devices)
    for number, instance in enumerate(plan.instances):
        if len(instance.devices) != 1 or used[instance.devices[0]] != 1:
            raise ValueError(f"instance {number} has no device by itself: {instance.devices}")
    if len(plan.instances) == 1:
        return (_whole(plan),)
    return tuple(_part(plan, number) for number in range(len(plan.instances)))


def _whole(plan: ExecutionPlan) -> Part:
    return Part(
        instance=0,
        device=plan.instances[0].devices[0],
        plan=plan,
        chains=_places(range(len(plan.chains))),
        apps=_places(range(len(plan.apps))),
        groups=tuple(range(len(plan.kv_groups))),
    )


def part_of_node(plan: ExecutionPlan, node: str) -> ExecutionPlan:
    """What the instances of a node run, on its devices; the plan itself if there are no others.

    Raises ValueError for a node without instances, and as `parts_of` does.
    """
    numbers = [
        number for number, own in enumerate(plan.instances) if plan.devices[own.devices[0]].node == node
    ]  # fmt: skip
    if not numbers:
        raise ValueError(f"no instance is on {node!r}")
    if len(numbers) == len(plan.instances):
        return plan
    devices = [index for index, device in enumerate(plan.devices) if device.node == node]
    return _cut_out(plan, numbers, devices).plan


def _part(plan: ExecutionPlan, number: int) -> Part:
    (device,) = plan.instances[number].devices
    cut = _cut_out(plan, [number], [device])
    return Part(
        instance=number, device=device, plan=cut.plan, chains=cut.chains, apps=cut.apps, groups=tuple(cut.groups)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """A plan of some instances; where the whole plan's chains, apps and KV groups are in it."""

    plan: ExecutionPlan
    chains: Mapping[int, int]
    apps: Mapping[int, int]
    groups: Mapping[int, int]


def _cut_out(plan: ExecutionPlan, numbers: Sequence[int], on: Sequence[int]) -> _Cut:
    """``numbers``: the instances that it has; ``on``: the devices."""
    instances, devices = _places(numbers), _places(on)
    chains = _places(sorted({chain for number in numbers for chain in plan.instances[number].chains}))
    apps = _places(index for index, app in enumerate(plan.apps) if app.chain in chains)
    segments = _places(sorted({item for chain in chains for item in plan.chains[chain].segments}))
    groups = _places(sorted({kv.group for chain in chains for kv in plan.chains[chain].kv}))
    paths = {plan.chains[chain].path for chain in chains}
    passed = {block for path in paths for block in plan.paths[path].blocks}
    blocks = passed | {prelude for block in passed if (prelude := plan.blocks[block].prelude) is not None}
    structures = {plan.blocks[block].structure for block in blocks}
    own_segments = tuple(_segment(plan, segment, chains) for segment in segments)
    routes = tuple(_route(plan.routes[chain], place, instances) for chain, place in chains.items())
    is_choice = any(len(route.alternatives) > 1 for route in routes)
    part = plan.model_copy(
        update={
            "requires": _requires(plan.requires),
            "structures": {key: text for key, text in plan.structures.items() if key in structures},
            "blocks": {key: block for key, block in plan.blocks.items() if key in blocks},
            "paths": {key: path for key, path in plan.paths.items() if key in paths},
            "chains": tuple(_chain(plan.chains[chain], segments, groups) for chain in chains),
            "segments": own_segments,
            "crossing": find_crossing([segment.chains for segment in own_segments]),
            "kv_groups": tuple(plan.kv_groups[group] for group in groups),
            "nodes": tuple(sorted({plan.devices[device].node for device in devices})),
            "devices": tuple(plan.devices[device] for device in devices),
            "links": (),
            "instances": tuple(
                _instance(plan.instances[number], devices, chains, segments, groups, with_prices=is_choice)
                for number in instances
            ),
            "edges": (),
            "routes": routes,
            "roles": None,
            "apps": tuple(plan.apps[app].model_copy(update={"chain": chains[plan.apps[app].chain]}) for app in apps),
            "models": _models(plan, chains),
            "memory": tuple(
                entry.model_copy(update={"device": devices[entry.device]})
                for entry in plan.memory
                if entry.device in devices
            ),
            "rules": (),
        }
    )
    return _Cut(plan=_with_room(plan, part, segments), chains=chains, apps=apps, groups=groups)


def _places(indices: Iterable[int]) -> dict[int, int]:
    """Each index -> its place among them."""
    return {index: place for place, index in enumerate(indices)}


def _requires(whole: tuple[str, ...]) -> tuple[str, ...]:
    """What a part needs at most: one device, and nothing of other instances."""
    others = {entry for entry in whole if not entry.startswith(("devices:", "roles:"))}
    return tuple(sorted(others | {"devices:1"}))


def _chain(chain: ChainEntry, segments: Mapping[int, int], groups: Mapping[int, int]) -> ChainEntry:
    kv = tuple(entry.model_copy(update={"group": groups[entry.group]}) for entry in chain.kv)
    return chain.model_copy(update={"segments": tuple(segments[item] for item in chain.segments), "kv": kv})


def _segment(plan: ExecutionPlan, number: int, chains: Mapping[int, int]) -> SegmentEntry:
    """On the path of one of its own chains: there all have the same blocks."""
    entry = plan.segments[number]
    own = [chain for chain in entry.chains if chain in chains]
    paths = [plan.chains[chain].path for chain in own]
    return entry.model_copy(
        update={
            "path": entry.path if entry.path in paths else paths[0],
            "chains": tuple(chains[chain] for chain in own),
            "cut": _cut(entry.cut, chains),
        }
    )


def _cut(cut: CutEntry, chains: Mapping[int, int]) -> CutEntry:
    if not all(chain in chains for chain in cut.chains):
        return CutEntry(kind="elsewhere", chains=(), differs=())
    return cut.model_copy(update={"chains": tuple(chains[chain] for chain in cut.chains)})


def _instance(
    instance: InstanceEntry,
    devices: Mapping[int, int],
    chains: Mapping[int, int],
    segments: Mapping[int, int],
    groups: Mapping[int, int],
    *,
    with_prices: bool,
) -> InstanceEntry:
    load, prices = instance.load, instance.prices
    if load is not None:
        load = load.model_copy(update={"batches": _renumbered(load.batches, segments)})
    if prices is not None:
        own = {"segment_s": _renumbered(prices.segment_s, segments), "chains": _renumbered(prices.chains, chains)}
        prices = prices.model_copy(update=own) if with_prices else None
    return instance.model_copy(
        update={
            "segments": tuple(segments[item] for item in instance.segments),
            "devices": tuple(devices[item] for item in instance.devices),
            "chains": tuple(chains[item] for item in instance.chains),
            "kv_pages": _renumbered(instance.kv_pages, groups),
            "turns": tuple(turn.model_copy(update={"segment": segments[turn.segment]}) for turn in instance.turns),
            "load": load,
            "prices": prices,
        }
    )


def _renumbered(table: Mapping[int, _T], places: Mapping[int, int]) -> dict[int, _T]:
    return {places[index]: value for index, value in table.items()}


def _route(route: RouteEntry, chain: int, instances: Mapping[int, int]) -> RouteEntry:
    """Those of its ways that are there; what of its requests goes which way stays in proportion."""
    kept = [place for place, way in enumerate(route.alternatives) if way[0] in instances]
    weights = [route.weights[place] for place in kept] if route.weights else []
    total = sum(weights)
    return route.model_copy(
        update={
            "chain": chain,
            "alternatives": tuple((instances[route.alternatives[place][0]],) for place in kept),
            "weights": tuple(weight / total for weight in weights) if len(kept) > 1 and total else (),
            "readers": (),
        }
    )


def _models(plan: ExecutionPlan, chains: Mapping[int, int]) -> dict[str, ModelEntry]:
    """Those of its chains, and what these were made of."""
    kept: set[str | None] = {None}
    for name, model in plan.models.items():
        at: str | None = name if model.chain in chains else None
        while at not in kept:
            assert at is not None, "the end of all lines is kept"
            kept.add(at)
            at = plan.models[at].parent
    return {
        name: model.model_copy(update={"chain": None if model.chain is None else chains.get(model.chain)})
        for name, model in plan.models.items()
        if name in kept
    }


def _with_room(plan: ExecutionPlan, part: ExecutionPlan, segments: Mapping[int, int]) -> ExecutionPlan:
    """Tensors that a segment shares with others elsewhere only are its own here, and take turns with it.

    They had a place of their own in memory for good; it becomes room, so that nothing takes more than it did.
    """
    before, here = turning_tensors(plan), turning_tensors(part)
    more = {
        place: _nbytes(part, place, new)
        for number, place in segments.items()
        if place in here and (new := here[place] - before[number])
    }
    if not more:
        return part
    instances, memory = [], {entry.device: entry for entry in part.memory}
    for instance in part.instances:
        added = sum(more.get(turn.segment, 0) for turn in instance.turns)
        turns = tuple(
            turn.model_copy(update={"nbytes": turn.nbytes + more.get(turn.segment, 0)}) for turn in instance.turns
        )
        instances.append(instance.model_copy(update={"turns": turns, "room_bytes": instance.room_bytes + added}))
        entry = memory[instance.devices[0]]
        held = {"weights_bytes": entry.weights_bytes - added, "blocks_bytes": entry.blocks_bytes + added}
        memory[entry.device] = entry.model_copy(update=held)
    return part.model_copy(update={"instances": tuple(instances), "memory": tuple(memory.values())})


def _nbytes(plan: ExecutionPlan, segment: int, digests: frozenset[str]) -> int:
    """Of some tensors of a segment, in the forms that placement counts."""
    found: set[ResidentTensor] = set()
    for digest in segment_blocks(plan, segment):
        block = plan.blocks[digest]
        found |= block_tensors(parse_structure(plan.structures[block.structure]), block.tensors)
    return sum(tensor.nbytes for tensor in found if tensor.ref.digest in digests)
