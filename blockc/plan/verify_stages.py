"""Contradictions in what a plan says of pipelines, and what of a page one of their devices holds.

In: an instance whose indices are those of the plan's tables. Out: contradictions in words; bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

from blockc.plan.model import ExecutionPlan
from blockc.plan.place_entries import InstanceEntry, StageEntry


def stage_problems(plan: ExecutionPlan, instance: InstanceEntry, name: str) -> Iterator[str]:
    """Stages cover the paths of all chains without gaps, are equally wide, and hidden states get from each to the next.

    A stage is of devices alike in one node; between nodes it takes a link that the plan names.
    """
    stages = instance.stages
    if not stages:
        return
    if tuple(device for stage in stages for device in stage.devices) != instance.devices:
        yield f"{name} has stages on other devices than its own"
        return
    if len({len(stage.devices) for stage in stages}) != 1 or not stages[0].devices:
        yield f"{name} has stages of several widths"
        return
    covered = 0
    for stage in stages:
        if stage.first != covered or stage.count < 1:
            yield f"{name} has stages that do not follow one another"
            return
        covered += stage.count
    lengths = {len(path.blocks) for c in instance.chains if (path := plan.paths.get(plan.chains[c].path)) is not None}
    if lengths != {covered}:
        yield f"{name} has stages of {covered} blocks, its chains have {', '.join(map(str, sorted(lengths)))}"
    if instance.turns or instance.side_slots:
        yield f"{name} is a pipeline, and something of it takes turns"
    nodes = [{plan.devices[device].node for device in stage.devices} for stage in stages]
    if any(len(own) != 1 for own in nodes):
        yield f"{name} has a stage on several nodes"
    elif len(set().union(*nodes)) > 1 and not any(
        plan.devices[link.source].node != plan.devices[link.target].node for link in plan.links
    ):
        yield f"{name} is on several nodes, and no link joins nodes"
    if len({(device.kind, device.memory_bytes) for d in instance.devices for device in (plan.devices[d],)}) != 1:
        yield f"{name} is a pipeline on devices that differ"


def held_page_bytes(plan: ExecutionPlan, instance: InstanceEntry, group: int, device: int) -> int:
    """Of a page of a KV group in the layers that a device has a part of, all heads together."""
    entry = plan.kv_groups[group]
    stage = instance.stage_of(device)
    if stage is None:
        return entry.page_bytes
    return entry.page_bytes // entry.layers * held_layers(plan, instance, stage, group)


def held_layers(plan: ExecutionPlan, instance: InstanceEntry, stage: StageEntry, group: int) -> int:
    """Layers of a KV group whose attention is in a stage, the most of any chain."""
    own = [plan.chains[c] for c in instance.chains if any(kv.group == group for kv in plan.chains[c].kv)]
    paths = sorted({chain.path for chain in own} & plan.paths.keys())
    return max((_layers(plan, path, stage, group) for path in paths), default=0)


def _layers(plan: ExecutionPlan, path: str, stage: StageEntry, group: int) -> int:
    own = plan.kv_groups[group]
    counts = [
        plan.structures[plan.blocks[digest].structure].count("= blockc.attention(")
        for digest in plan.paths[path].blocks
    ]
    first = sum(counts[: stage.first])
    stop = first + sum(counts[stage.first : stage.first + stage.count])
    return max(0, min(stop, own.first_layer + own.layers) - max(first, own.first_layer))
