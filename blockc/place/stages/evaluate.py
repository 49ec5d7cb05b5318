"""Does a pipeline hold? From the problem's own figures, part by part; nothing of the search but what a part takes.

In: a problem, a placement, the number of an instance with stages. Out: what does not hold, in words.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from blockc.place.problem import PlaceProblem
from blockc.place.stages.links import hop_links
from blockc.place.stages.parts import Parts
from blockc.place.tables import Placement
from blockc.place.traffic.times import IN_FLIGHT_MARGIN, cadence_s, in_flight
from blockc.plan import InstanceEntry

_SLACK = 1e-3


def stage_faults(problem: PlaceProblem, instance: InstanceEntry, number: int) -> Iterator[str]:
    """Stages cover all blocks in order, on devices alike of one node each, with a way from each to the next."""
    stages = instance.stages
    if instance.devices != tuple(device for stage in stages for device in stage.devices):
        yield f"instance {number} has stages on other devices than its own"
    widths = {len(stage.devices) for stage in stages}
    if len(widths) != 1 or not widths <= {1, 2, 4, 8}:
        yield f"instance {number} has stages on {', '.join(map(str, sorted(widths)))} devices"
    begins = [0, *(stage.first + stage.count for stage in stages)]
    lengths = {len(problem.chains[chain].blocks) for chain in instance.chains}
    if lengths != {begins[-1]} or any(s.first != b or s.count < 1 for s, b in zip(stages, begins, strict=False)):
        yield f"instance {number} has stages that do not cover the blocks of its chains"
    for stage in stages:
        if len({problem.devices[device].node for device in stage.devices}) != 1:
            yield f"instance {number} has a stage on several nodes"
    own = [problem.devices[device] for device in instance.devices]
    if len({(device.kind, device.offered_bytes) for device in own}) != 1:
        yield f"instance {number} is on devices that differ"
    if hop_links(problem, [stage.devices for stage in stages]) is None:
        yield f"instance {number} is on nodes between which nothing travels"


def _parts(problem: PlaceProblem, instance: InstanceEntry) -> Parts:
    return Parts(problem, instance.chains, instance.width)


def _share(placement: Placement, chain: int, number: int) -> float:
    return placement.routes[chain].shares.get(number, 0.0)


def stage_bytes(problem: PlaceProblem, placement: Placement, number: int) -> Iterator[str]:
    """Every device holds its part with the pages that it is said to have, and those are enough."""
    instance = placement.instances[number]
    parts = _parts(problem, instance)
    entries = {entry.device: entry for entry in placement.memory}
    for stage in instance.stages:
        for device in stage.devices:
            own = problem.devices[device]
            used = parts.layout(
                stage.first, stage.first + stage.count, instance.kv_pages, reserve_bytes=own.reserve_bytes
            )
            said = entries[device]
            if used.used_bytes + own.headroom_bytes > own.memory_bytes or said.kv_bytes != used.kv_bytes:
                yield f"a stage of instance {number} does not fit {own.address}"
            if (said.weights_bytes, said.sides_bytes) != (used.weights_bytes, used.sides_bytes):
                yield f"a stage of instance {number} has other weights than {own.address} is said to hold"
    for group, longest in parts.least_pages.items():
        expected = 0.0
        for chain in instance.chains:
            model, load = problem.chains[chain], problem.chains[chain].load
            if load is not None and group in model.groups:
                tokens = min(float(load.prompt_tokens + load.output_tokens / 2), model.max_model_len)
                pages = tokens / problem.groups[group].page_tokens
                expected += IN_FLIGHT_MARGIN * in_flight(load) * _share(placement, chain, number) * pages
        pages = instance.kv_pages.get(group, 0)
        wanted = min(0.99 * expected - 1, longest * problem.max_rows) if instance.load is not None else 0
        if pages < longest or pages < wanted:
            yield f"instance {number} has {pages} pages of KV group {group}, {longest} and {expected:.1f} are needed"


def stage_sent(problem: PlaceProblem, placement: Placement, number: int) -> float:
    """Bytes a second: hidden states over all hops, and what the devices of a stage add up."""
    instance, found = placement.instances[number], 0.0
    parts = _parts(problem, instance)
    hops = sum(parts.state_bytes(stage.first) for stage in instance.stages[1:])
    for chain in instance.chains:
        load = problem.chains[chain].load
        if load is not None and problem.work is not None:
            nbytes = sum(problem.work.segments[segment].reduce_bytes for segment in problem.chains[chain].segments)
            tokens = float(load.rate_rps * (load.prompt_tokens + load.output_tokens)) * _share(placement, chain, number)
            found += tokens * (hops + 2 * (instance.width - 1) * nbytes)
    return found


def stage_times(problem: PlaceProblem, placement: Placement, number: int) -> Iterator[str]:
    """No stage is busier than is said, hops carry what they have to, and a token passes all within its target."""
    instance = placement.instances[number]
    parts, said = _parts(problem, instance), instance.load
    loads = {chain: load for chain in instance.chains if (load := problem.chains[chain].load) is not None}
    rates = problem.rates_of(problem.devices[instance.devices[0]].kind, instance.width)
    if said is None or said.cadence_s is None or not loads:
        return
    if rates is None:
        yield f"instance {number} is on devices of which nothing is known"
        return
    rate = {chain: float(load.rate_rps) * _share(placement, chain, number) for chain, load in loads.items()}
    worst = 0.0
    for stage in instance.stages:
        first, stop = stage.first, stage.first + stage.count
        busy = (rates.step_s + parts.sweep_s(first, stop, rates)) / said.cadence_s
        busy += sum(rate[chain] * parts.times(chain, first, stop, rates).request_s(loads[chain]) for chain in loads)
        worst = max(worst, busy)
    if worst > said.limit + _SLACK or said.traffic + said.sweeps < worst - _SLACK:
        told = said.traffic + said.sweeps
        yield f"a stage of instance {number} is busy for {worst:.3f} of its time, {told:.3f} is said"
    links = hop_links(problem, [stage.devices for stage in instance.stages]) or ()
    tokens = sum(float(load.prompt_tokens + load.output_tokens) * rate[chain] for chain, load in loads.items())
    travel_s = 0.0
    for (_, after), link in zip(pairwise(instance.stages), links, strict=True):
        if link is not None and tokens * parts.state_bytes(after.first) > link.bytes_per_s:
            yield f"more travels between stages of instance {number} than their link carries"
        travel_s += 0.0 if link is None else link.latency_s
    target_s = min(cadence_s(load) for load in loads.values())
    if said.cadence_s * len(instance.stages) + travel_s > target_s + _SLACK:
        yield f"tokens of instance {number} take longer than {target_s:g} s from stage to stage"
