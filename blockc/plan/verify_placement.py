"""Contradictions in what a plan says of devices: instances, routes, pages and memory.

In: a plan whose chains hold together. Out: contradictions in words.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from blockc.ir.layout import page_share
from blockc.plan.model import ExecutionPlan
from blockc.plan.place_entries import InstanceEntry, LoadEntry, PricesEntry, RolesEntry, RouteEntry, SolverEntry
from blockc.plan.verify_stages import held_page_bytes, stage_problems


def placement_problems(plan: ExecutionPlan) -> Iterator[str]:
    """All of them. Indices into the plan's tables are checked before they are used."""
    batching, solver = plan.batching, plan.solver
    if batching.max_rows < 1 or batching.max_batched_tokens < batching.max_rows:
        yield "a step cannot hold one token of each row"
    if batching.prefill_parts < 1 or batching.max_batched_tokens < batching.max_rows * batching.prefill_parts:
        yield "a part of a step cannot hold one token of each row"
    if (
        not all(math.isfinite(number) for number in (solver.value, solver.bound, solver.gap, *solver.values))
        or solver.gap < 0
    ):
        yield "the solver's figures are not numbers"
    yield from _search(solver)
    yield from _devices(plan)
    yield from _instances(plan)
    yield from _routes(plan)
    yield from _memory(plan)
    for rule in plan.rules:
        if not _all_in(rule.chains, plan.chains) or not _all_in(rule.devices, plan.devices) or rule.count < 1:
            yield "a rule is for chains or devices that are not there"
    shares = sum(tenant.fair_bytes for tenant in plan.tenants)
    if plan.tenants and shares != plan.baselines.ours_bytes:
        yield f"the tenants' shares add up to {shares} bytes of {plan.baselines.ours_bytes}"


def _search(solver: SolverEntry) -> Iterator[str]:
    numbers = [n for step in solver.history for n in (step.units, step.bound, step.value) if n is not None]
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        yield "the solver's history has figures that are not numbers"
    if solver.values and (len(solver.values) != len(solver.objective) or solver.values[0] != solver.value):
        yield "the solver's values are not those of its objective"
    if any(after.bound < before.bound for before, after in itertools.pairwise(solver.history)):
        yield "the solver's bound falls"
    if solver.moved_bytes is not None and solver.moved_bytes < 0:
        yield "less than nothing is moved"


def _devices(plan: ExecutionPlan) -> Iterator[str]:
    for device in plan.devices:
        if device.node not in plan.nodes:
            yield f"device {device.address} is on a node that is not there"
        if not 0 <= device.reserve_bytes <= device.memory_bytes:
            yield f"device {device.address} reserves more than it has"
    if len({device.address for device in plan.devices}) != len(plan.devices):
        yield "two devices have one address"
    for link in plan.links:
        if not _all_in((link.source, link.target), plan.devices):
            yield "a link joins a device that is not there"


def _instances(plan: ExecutionPlan) -> Iterator[str]:
    for index, instance in enumerate(plan.instances):
        name = f"instance {index}"
        if not instance.devices or not _all_in(instance.devices, plan.devices):
            yield f"{name} is on a device that is not there"
            return
        if not _all_in(instance.segments, plan.segments) or not _all_in(instance.chains, plan.chains):
            yield f"{name} runs something that is not there"
            return
        if not _all_in(tuple(instance.kv_pages), plan.kv_groups) or min(instance.kv_pages.values(), default=1) < 1:
            yield f"{name} has pages of a KV group that is not there, or none"
            return
        groups = {entry.group for number in instance.chains for entry in plan.chains[number].kv}
        if not instance.chains or not groups >= instance.kv_pages.keys():
            yield f"{name} has pages of a KV group that none of its chains has, or no chain"
        if not 1 <= instance.max_rows <= plan.batching.max_rows:
            yield f"{name} runs {instance.max_rows} rows of {plan.batching.max_rows}"
        for number in instance.chains:
            chain = plan.chains[number]
            for entry in chain.kv:
                pages = instance.kv_pages.get(entry.group, 0)
                if pages * plan.kv_groups[entry.group].page_tokens < chain.max_model_len:
                    yield f"{name} has {pages} pages of KV group {entry.group}, too few for chain {number}"
        yield from stage_problems(plan, instance, name)
        yield from _slots(plan, instance, name)
        yield from _turns(plan, instance, name)
        if instance.load is not None:
            yield from _load(instance, instance.load, name)
        if instance.prices is not None:
            yield from _prices(instance, instance.prices, name)
    for edge in plan.edges:
        if not _all_in((edge.source, edge.target), plan.instances):
            yield "an edge joins an instance that is not there"


def _load(instance: InstanceEntry, load: LoadEntry, name: str) -> Iterator[str]:
    """Its figures are numbers, it is no busier than it may be, and its batches are of its own segments."""
    numbers = (load.traffic, load.sweeps, load.limit, load.rows, load.cadence_s or 0.0)
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        yield f"{name} has a load that is no number"
    elif load.limit > 1 or load.traffic + load.sweeps > load.limit * (1 + 1e-6):
        yield f"{name} is busier than it may be"
    if not set(load.batches) <= set(instance.segments) or min(load.batches.values(), default=1) < 1:
        yield f"{name} has batches of segments that it does not run, or none"


def _prices(instance: InstanceEntry, prices: PricesEntry, name: str) -> Iterator[str]:
    """Of its own segments and chains, all of them, and numbers."""
    if set(prices.segment_s) != set(instance.segments) or set(prices.chains) != set(instance.chains):
        yield f"{name} has prices of other segments or chains than it runs"
    own = [number for entry in prices.chains.values() for number in entry.model_dump().values()]
    numbers = (prices.step_s, prices.cache_tokens, *prices.segment_s.values(), *own)
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        yield f"{name} has prices that are no numbers"


def _slots(plan: ExecutionPlan, instance: InstanceEntry, name: str) -> Iterator[str]:
    """Every limited bank has slots, and fine-tunes that take turns in them."""
    banks = {plan.chains[number].bank for number in instance.chains}
    for bank, slots in instance.side_slots.items():
        if bank not in banks:
            yield f"{name} has slots of bank {bank}, which none of its chains uses"
        if slots < 1:
            yield f"{name} has no slots of bank {bank}"


def _turns(plan: ExecutionPlan, instance: InstanceEntry, name: str) -> Iterator[str]:
    """Segments that take turns are its own, and those of any one chain are there at once."""
    sizes = {turn.segment: turn.nbytes for turn in instance.turns}
    if len(sizes) != len(instance.turns) or not sizes.keys() <= set(instance.segments):
        yield f"{name} has segments that take turns twice, or does not run them"
    if not all(turn.nbytes >= 0 and math.isfinite(turn.uses_rps) and turn.uses_rps >= 0 for turn in instance.turns):
        yield f"{name} has segments that take turns with sizes or uses that are no numbers"
    if instance.room_bytes < 0 or (instance.room_bytes and not sizes):
        yield f"{name} has room for segments that take turns, and none of them"
    for number in instance.chains:
        wanted = sum(sizes.get(segment, 0) for segment in plan.chains[number].segments)
        if wanted > instance.room_bytes:
            yield f"{name} has no room for the segments of chain {number} that take turns"


def _routes(plan: ExecutionPlan) -> Iterator[str]:
    if [route.chain for route in plan.routes] != list(range(len(plan.chains))):
        yield "not every chain has exactly one route"
        return
    for route in plan.routes:
        if not route.alternatives:
            yield f"chain {route.chain} has no route"
        for alternative in route.alternatives:
            yield from _alternative(plan, route, alternative)
        yield from _weights(route)
        yield from _readers(plan, route)
    if plan.roles is not None:
        yield from _roles(plan, plan.roles)


def _readers(plan: ExecutionPlan, route: RouteEntry) -> Iterator[str]:
    """Some of its instances, not all, each of which runs the whole chain on one cell."""
    if not route.readers:
        return
    name = f"the route of chain {route.chain}"
    ways = {way[0] for way in route.alternatives if len(way) == 1}
    if len(set(route.readers)) != len(route.readers) or not set(route.readers) < ways:
        yield f"{name} has readers that are not some of its instances"
    elif any(plan.instances[item].stages for item in ways):
        yield f"{name} has readers beside pipelines"
    if plan.roles is None or not set(route.readers) <= set(plan.roles.readers):
        yield f"{name} has readers of which the plan does not say what they bring"


def _roles(plan: ExecutionPlan, roles: RolesEntry) -> Iterator[str]:
    figures = [*roles.apart.model_dump().values(), *roles.shared.model_dump().values(), roles.seconds]
    if not all(math.isfinite(figure) and figure >= 0 for figure in figures) or roles.requests < 1:
        yield "what readers bring has figures that are not numbers"
    if set(roles.readers) != {item for route in plan.routes for item in route.readers}:
        yield "the plan speaks of readers that no route has, or not of all"


def _weights(route: RouteEntry) -> Iterator[str]:
    """One for each alternative, adding up to 1, or none."""
    name = f"the route of chain {route.chain}"
    if len(set(route.alternatives)) != len(route.alternatives):
        yield f"{name} has one alternative twice"
    if route.weights and len(route.weights) != len(route.alternatives):
        yield f"{name} has {len(route.weights)} weights for {len(route.alternatives)} alternatives"
    if route.weights and not (all(0 <= weight <= 1 for weight in route.weights) and abs(sum(route.weights) - 1) < 1e-6):
        yield f"{name} has weights that do not add up to 1"
    times = [time for time in (route.ttft_s, route.tpot_s) if time is not None]
    if not all(math.isfinite(time) and time >= 0 for time in times):
        yield f"{name} expects times that are not numbers"


def _alternative(plan: ExecutionPlan, route: RouteEntry, alternative: tuple[int, ...]) -> Iterator[str]:
    """Its instances run the chain, all its segments, in order; between any two there is an edge."""
    name = f"the route of chain {route.chain}"
    if not alternative or not _all_in(alternative, plan.instances):
        yield f"{name} names an instance that is not there"
        return
    if any(route.chain not in plan.instances[item].chains for item in alternative):
        yield f"{name} names an instance that does not run it"
    own = plan.chains[route.chain].segments
    passed = [number for item in alternative for number in sorted(plan.instances[item].segments) if number in own]
    if passed != list(own):
        yield f"{name} misses segments or meets them in another order"
    edges = {(edge.source, edge.target) for edge in plan.edges}
    if any(hop not in edges for hop in itertools.pairwise(alternative)):
        yield f"{name} takes an edge that is not there"


def _memory(plan: ExecutionPlan) -> Iterator[str]:
    if len({entry.device for entry in plan.memory}) != len(plan.memory):
        yield "the memory of a device is listed twice"
    listed = {entry.device for entry in plan.memory}
    if any(device not in listed for instance in plan.instances for device in instance.devices):
        yield "the memory of a device in use is not listed"
    for entry in plan.memory:
        if not _all_in((entry.device,), plan.devices):
            yield "memory is listed of a device that is not there"
            return
        device = plan.devices[entry.device]
        if (entry.capacity_bytes, entry.reserve_bytes) != (device.memory_bytes, device.reserve_bytes):
            yield f"device {device.address} and its memory entry differ"
        parts = (
            entry.weights_bytes, entry.blocks_bytes, entry.sides_bytes, entry.kv_bytes, entry.workspace_bytes,
        )  # fmt: skip
        if min(parts) < 0 or entry.used_bytes > entry.capacity_bytes:
            yield f"device {device.address} is filled beyond its memory"
        own = [instance for instance in plan.instances if entry.device in instance.devices]
        kv_bytes = sum(
            pages * page_share(held_page_bytes(plan, instance, index, entry.device), kv_heads=heads, devices=width)
            for instance in own
            for width in (instance.width,)
            for index, pages in instance.kv_pages.items()
            for heads in (plan.kv_groups[index].kv_heads,)
        )
        if (room_bytes := sum(instance.room_bytes for instance in own)) > entry.blocks_bytes:
            yield f"device {device.address} counts {entry.blocks_bytes} bytes of room, its instances have {room_bytes}"
        if kv_bytes != entry.kv_bytes:
            yield f"device {device.address} counts {entry.kv_bytes} KV bytes, its instances have {kv_bytes}"


def _all_in(indices: tuple[int, ...], table: tuple[object, ...]) -> bool:
    """Each is an index into the table, and none stands twice."""
    return all(0 <= index < len(table) for index in indices) and len(set(indices)) == len(indices)
