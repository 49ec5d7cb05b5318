"""What an earlier plan has where, as a placement problem sees it.

In: a plan and the graph and devices of a new one. Out: cells and pipelines with the chains that are still there, and
what lies on each device. Chains and tensors are known by digest and devices by address: what has another name is new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from blockc.place.problem import BeforeCell, BeforePipeline, PlaceBefore, PlaceDevice
from blockc.plan import ExecutionPlan, InstanceEntry


def before_of(plan: ExecutionPlan, digests: Sequence[str], devices: Sequence[PlaceDevice]) -> PlaceBefore:
    """``digests``: of the new plan's chains, by index."""
    chain_of = {digest: index for index, digest in enumerate(digests)}
    device_of = {device.address: index for index, device in enumerate(devices)}
    now = {index: device_of.get(device.address) for index, device in enumerate(plan.devices)}
    cells, tensors, widths, parts = [], {}, {}, {}
    chains: dict[int, frozenset[int]] = {}
    for number, instance in enumerate(plan.instances):
        places = [now[device] for device in instance.devices]
        known = tuple(sorted(place for place in places if place is not None))
        kept = tuple(
            (chain_of[digest], plan.routes[chain].shares.get(number, 0.0))
            for chain in instance.chains
            if (digest := plan.chains[chain].digest) in chain_of
        )
        for device in instance.devices:
            place = now[device]
            if place is None:
                continue
            stage = instance.stage_of(device)
            if stage is not None:
                parts[place] = stage.first, stage.first + stage.count
            part = slice(None) if stage is None else slice(*parts[place])
            tensors[place] = _tensors(plan, instance.chains, part)
            chains[place] = frozenset(chain for chain, _ in kept)
            widths[place] = instance.width
        if not instance.stages and len(known) == len(instance.devices):
            cells.append(BeforeCell(devices=known, chains=kept))
    pipelines = pipelines_before(plan.instances, dict(enumerate(chain_of.get(own.digest) for own in plan.chains)), now)
    return PlaceBefore(
        cells=tuple(cells), tensors=tensors, chains=chains, widths=widths, pipelines=pipelines, parts=parts
    )


def pipelines_before(
    instances: Sequence[InstanceEntry], chain_of: Mapping[int, int | None], device_of: Mapping[int, int | None]
) -> tuple[BeforePipeline, ...]:
    """Instances alike are copies of one. ``chain_of``, ``device_of``: earlier to new, None where it is gone."""
    alike: dict[tuple[object, ...], list[InstanceEntry]] = {}
    for own in instances:
        if own.stages:
            alike.setdefault((own.chains, own.width, tuple(stage.first for stage in own.stages)), []).append(own)
    return tuple(
        BeforePipeline(
            chains=tuple(sorted(new for chain in copies[0].chains if (new := chain_of[chain]) is not None)),
            begins=(0, *(stage.first + stage.count for stage in copies[0].stages)),
            copies=tuple(tuple(_places(stage.devices, device_of) for stage in own.stages) for own in copies),
        )
        for copies in alike.values()
    )


def _places(devices: Sequence[int], device_of: Mapping[int, int | None]) -> tuple[int, ...] | None:
    found = tuple(place for device in devices if (place := device_of[device]) is not None)
    return found if len(found) == len(devices) else None


def _tensors(plan: ExecutionPlan, chains: Sequence[int], part: slice) -> frozenset[str]:
    found: set[str] = set()
    for digest in {block for chain in chains for block in plan.paths[plan.chains[chain].path].blocks[part]}:
        block = plan.blocks[digest]
        found |= {tensor.digest for tensor in block.tensors.values()}
        if block.prelude is not None:
            found |= {tensor.digest for tensor in plan.blocks[block.prelude].tensors.values()}
    return frozenset(found)
