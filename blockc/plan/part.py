"""A plan of several devices as one plan for each of its instances.

In: a plan whose instances are on one device each. Out: for each what it runs, as a plan by itself, and whose chains,
apps and KV groups those are. Invariants: a part holds together as any plan does; chains, domains, blocks and tensors
keep their digests, so that parts of one plan read the same zoo; and all parts bind what the whole plan binds.

What tells of the whole deployment stays as it is: tenants with their quotas and bytes (which add up to ``ours_bytes``
over all of them), baselines, the price, and how the placement was found. Numbers of banks stay, too: they are names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from blockc.ir.layout import ResidentTensor, block_tensors
from blockc.ir.parse import parse_structure
from blockc.plan.app_entries import ModelEntry
from blockc.plan.graph_entries import ChainEntry, CutEntry, SegmentEntry
from blockc.plan.laminar import find_crossing
from blockc.plan.model import ExecutionPlan
from blockc.plan.place_entries import InstanceEntry, RouteEntry
from blockc.plan.turns import segment_blocks, turning_tensors


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


def _part(plan: ExecutionPlan, number: int) -> Part:
    instance = plan.instances[number]
    device = plan.devices[instance.devices[0]]
    chains = _places(sorted(instance.chains))
    apps = _places(index for index, app in enumerate(plan.apps) if app.chain in chains)
    segments = _places(sorted({item for chain in chains for item in plan.chains[chain].segments}))
    groups = _places(sorted({kv.group for chain in chains for kv in plan.chains[chain].kv}))
    paths = {plan.chains[chain].path for chain in chains}
    passed = {block for path in paths for block in plan.paths[path].blocks}
    blocks = passed | {prelude for block in passed if (prelude := plan.blocks[block].prelude) is not None}
    structures = {plan.blocks[block].structure for block in blocks}
    own_segments = tuple(_segment(plan, segment, chains) for segment in segments)
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
            "nodes": (device.node,),
            "devices": (device,),
            "links": (),
            "instances": (_instance(instance, chains, segments, groups),),
            "edges": (),
            "routes": tuple(_route(plan.routes[chain], place) for chain, place in chains.items()),
            "roles": None,
            "apps": tuple(plan.apps[app].model_copy(update={"chain": chains[plan.apps[app].chain]}) for app in apps),
            "models": _models(plan, chains),
            "memory": tuple(
                entry.model_copy(update={"device": 0})
                for entry in plan.memory
                if entry.device == instance.devices[0]
            ),
            "rules": (),
        }
    )  # fmt: skip
    return Part(
        instance=number,
        device=instance.devices[0],
        plan=_with_room(plan, part, segments),
        chains=chains,
        apps=apps,
        groups=tuple(groups),
    )


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
    instance: InstanceEntry, chains: Mapping[int, int], segments: Mapping[int, int], groups: Mapping[int, int]
) -> InstanceEntry:
    load = instance.load
    if load is not None:
        load = load.model_copy(
            update={"batches": {segments[item]: count for item, count in load.batches.items()}}
        )  # fmt: skip
    return instance.model_copy(
        update={
            "segments": tuple(segments.values()),
            "devices": (0,),
            "chains": tuple(chains.values()),
            "kv_pages": {groups[group]: pages for group, pages in instance.kv_pages.items()},
            "turns": tuple(turn.model_copy(update={"segment": segments[turn.segment]}) for turn in instance.turns),
            "load": load,
            "prices": None,
        }
    )


def _route(route: RouteEntry, chain: int) -> RouteEntry:
    return route.model_copy(update={"chain": chain, "alternatives": ((0,),), "weights": (), "readers": ()})


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
    added = sum(more.values())
    if not more:
        return part
    (instance,), (memory,) = part.instances, part.memory
    turns = tuple(
        turn.model_copy(update={"nbytes": turn.nbytes + more.get(turn.segment, 0)}) for turn in instance.turns
    )
    room = {"turns": turns, "room_bytes": instance.room_bytes + added}
    held = {"weights_bytes": memory.weights_bytes - added, "blocks_bytes": memory.blocks_bytes + added}
    return part.model_copy(
        update={"instances": (instance.model_copy(update=room),), "memory": (memory.model_copy(update=held),)}
    )


def _nbytes(plan: ExecutionPlan, segment: int, digests: frozenset[str]) -> int:
    """Of some tensors of a segment, in the forms that placement counts."""
    found: set[ResidentTensor] = set()
    for digest in segment_blocks(plan, segment):
        block = plan.blocks[digest]
        found |= block_tensors(parse_structure(plan.structures[block.structure]), block.tensors)
    return sum(tensor.nbytes for tensor in found if tensor.ref.digest in digests)
