"""Does a plan hold together? Digests, indices, and that every chain can be run as written.

In: a plan of the right schema. Out: the first contradiction, in words, or None.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

from blockc.ir.parse import StructureError, parse_structure
from blockc.ir.structure import Structure
from blockc.plan.model import ChainEntry, ExecutionPlan


def plan_problem(plan: ExecutionPlan) -> str | None:
    """The first contradiction found, None if there is none."""
    return next(itertools.chain(_blocks(plan), _paths(plan), _chains(plan), _placement(plan)), None)


def _blocks(plan: ExecutionPlan) -> Iterator[str]:
    structures: dict[str, Structure] = {}
    for digest, text in plan.structures.items():
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            yield f"structure {digest[:12]} has another digest than its text"
            return
        try:
            structures[digest] = parse_structure(text)
        except StructureError as error:
            yield f"structure {digest[:12]}: {error}"
            return
    for digest, block in plan.blocks.items():
        structure = structures.get(block.structure)
        if structure is None:
            yield f"block {digest[:12]} has no structure"
            return
        shapes = {name: (type_.dtype, type_.shape) for name, type_ in structure.params}
        if {name: (tensor.dtype, tensor.shape) for name, tensor in block.tensors.items()} != shapes:
            yield f"block {digest[:12]} binds other tensors than its structure declares"
        if set(block.binds) != set(structure.binds):
            yield f"block {digest[:12]} binds other scalars than its structure declares"
        if len(block.contexts) != len(structure.contexts):
            yield f"block {digest[:12]} takes another number of context inputs than its structure declares"
        if block.contexts:
            prelude = plan.blocks.get(block.prelude or "")
            outputs = len(structures[prelude.structure].returns) if prelude and prelude.structure in structures else 0
            if not all(0 <= index < outputs for index in block.contexts):
                yield f"block {digest[:12]} reads context that its prelude does not compute"


def _paths(plan: ExecutionPlan) -> Iterator[str]:
    for digest, path in plan.paths.items():
        if not path.blocks or any(block not in plan.blocks for block in path.blocks):
            yield f"path {digest[:12]} names a block that is not there"
            return
        attentions = sum(
            plan.structures[plan.blocks[block].structure].count("= blockc.attention(") for block in path.blocks
        )
        if attentions != len(path.kv_layers):
            yield f"path {digest[:12]} has {attentions} attention ops and {len(path.kv_layers)} KV layers"


def _chains(plan: ExecutionPlan) -> Iterator[str]:
    for index, chain in enumerate(plan.chains):
        if chain.path not in plan.paths:
            yield f"chain {index} follows a path that is not there"
            return
        yield from _segments_of(plan, index, chain)
        yield from _groups_of(plan, index, chain)
    for app in plan.apps:
        if not 0 <= app.chain < len(plan.chains):
            yield f"app {app.address} names a chain that is not there"
    if len({app.address for app in plan.apps}) != len(plan.apps):
        yield "two apps have one address"


def _segments_of(plan: ExecutionPlan, index: int, chain: ChainEntry) -> Iterator[str]:
    blocks = plan.paths[chain.path].blocks
    place = 0
    for number in chain.segments:
        if not 0 <= number < len(plan.segments):
            yield f"chain {index} passes a segment that is not there"
            return
        segment = plan.segments[number]
        other = plan.paths[segment.path].blocks if segment.path in plan.paths else ()
        end = segment.first + segment.count
        if segment.first != place or segment.count < 1 or blocks[place:end] != other[segment.first : end]:
            yield f"segment {number} is not what chain {index} passes at block {place}"
            return
        if index not in segment.chains:
            yield f"segment {number} does not list chain {index}"
        place = end
    if place != len(blocks) or list(chain.segments) != sorted(chain.segments):
        yield f"the segments of chain {index} are not its path"


def _groups_of(plan: ExecutionPlan, index: int, chain: ChainEntry) -> Iterator[str]:
    layers = plan.paths[chain.path].kv_layers
    place = 0
    for entry in chain.kv:
        if not 0 <= entry.group < len(plan.kv_groups):
            yield f"chain {index} uses a KV group that is not there"
            return
        group = plan.kv_groups[entry.group]
        own = layers[place : place + group.layers]
        shape = (group.kv_heads, group.head_dim, group.window, group.dtype)
        alike = all((kv.kv_heads, kv.head_dim, kv.window, kv.dtype) == shape for kv in own)
        if group.first_layer != place or group.layers < 1 or len(own) != group.layers or not alike:
            yield f"KV group {entry.group} does not fit chain {index} at layer {place}"
            return
        place += group.layers
    if place != len(layers):
        yield f"the KV groups of chain {index} do not cover its layers"


def _placement(plan: ExecutionPlan) -> Iterator[str]:
    routed = {route.chain for route in plan.routes}
    if routed != set(range(len(plan.chains))) or len(plan.routes) != len(plan.chains):
        yield "not every chain has exactly one route"
    for route in plan.routes:
        for alternative in route.alternatives:
            if not alternative or not all(0 <= item < len(plan.instances) for item in alternative):
                yield f"the route of chain {route.chain} names an instance that is not there"
                return
            passed = [number for item in alternative for number in plan.instances[item].segments]
            if not set(plan.chains[route.chain].segments) <= set(passed):
                yield f"the route of chain {route.chain} misses segments"
        if not route.alternatives:
            yield f"chain {route.chain} has no route"
    for index, instance in enumerate(plan.instances):
        if not all(0 <= device < len(plan.devices) for device in instance.devices) or not instance.devices:
            yield f"instance {index} is on a device that is not there"
        groups = {entry.group for chain in instance.chains for entry in plan.chains[chain].kv}
        if any(instance.kv_pages.get(group, 0) < 1 for group in groups):
            yield f"instance {index} has no pages of a KV group that it needs"
    for memory in plan.memory:
        if memory.used_bytes > memory.capacity_bytes:
            yield f"device {memory.device} is filled beyond its memory"
    batching = plan.batching
    if batching.max_rows < 1 or batching.max_batched_tokens < batching.max_rows:
        yield "a step cannot hold one token of each row"
