"""Does a placement hold? An independent check, from the problem's own figures, that every method's result passes.

In: a problem and a placement. Out: what does not hold, in words; empty if everything does. Nothing here is shared with
the searches: sums are made afresh, in seconds and bytes, from work, rates and layouts.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from blockc.cost import DeviceRates
from blockc.ir.layout import tensor_share
from blockc.place.loads import all_parts, with_served
from blockc.place.problem import PlaceProblem, PlaceRule
from blockc.place.sizes import sizes_of
from blockc.place.stages.evaluate import stage_bytes, stage_faults, stage_sent, stage_times
from blockc.place.tables import Placement
from blockc.place.traffic.times import (
    IN_FLIGHT_MARGIN,
    busy_limit,
    cadence_s,
    chain_times,
    decoded_per_s,
    first_token_s,
    in_flight,
    paced_s,
    sides_sweep_s,
    sweep_s,
)
from blockc.plan import InstanceEntry, MemoryEntry

# Of what is rounded: to ten-thousandths where shares are concerned.
_SLACK = 1e-3


def evaluate(problem: PlaceProblem, placement: Placement) -> tuple[str, ...]:
    """What does not hold."""
    wrong = tuple(_served(problem, placement))
    if wrong:
        return wrong
    problem = with_served(problem, placement.served)
    return (
        *_devices(problem, placement),
        *_routes(problem, placement),
        *_rules(problem, placement),
        *_bytes(problem, placement),
        *_times(problem, placement),
    )


def _served(problem: PlaceProblem, placement: Placement) -> Iterator[str]:
    """Nobody loses anything before those of higher priorities have lost all, and equals lose equally."""
    part_of = {part.app: (part.priority, placement.served.get(part.app, Fraction(1))) for part in all_parts(problem)}
    for app, part in placement.served.items():
        if not problem.sheds or app not in part_of or not 0 <= part < 1:
            yield f"{app} is served {float(part):.2f} of its load"
    for app, (priority, part) in sorted(part_of.items()):
        for other, (lower, less) in sorted(part_of.items()):
            if (priority == lower and part != less) or (priority < lower and part < 1 and less > 0):
                yield f"{app} of priority {priority} is served {float(part):.2f}, {other} of {lower} {float(less):.2f}"


def _devices(problem: PlaceProblem, placement: Placement) -> Iterator[str]:
    used: set[int] = set()
    for number, instance in enumerate(placement.instances):
        if used & set(instance.devices):
            yield f"instance {number} is on a device that another has"
        used |= set(instance.devices)
        if instance.stages:
            yield from stage_faults(problem, instance, number)
            continue
        devices = [problem.devices[index] for index in instance.devices]
        if len({(device.node, device.kind, device.offered_bytes) for device in devices}) != 1:
            yield f"instance {number} is on devices that differ or are of several nodes"
        if len(devices) not in (1, 2, 4, 8):
            yield f"instance {number} is on {len(devices)} devices"
    said = placement.solver
    found = {"devices": float(max(1, len(used)))}
    prices = [problem.devices[index].price_per_hour for index in used]
    found["cost"] = float(sum(price for price in prices if price is not None))
    loads = [item.load for item in placement.instances if item.load is not None]
    found["peak_load"] = max((load.traffic + load.sweeps for load in loads), default=0.0)
    found["communication"] = sum(_sent(problem, placement, number) for number in range(len(placement.instances)))
    found["slo"] = max(((load.traffic + load.sweeps) / load.limit for load in loads), default=0.0)
    for goal, value in zip(said.objective, said.values or (said.value,), strict=False):
        if goal in found and abs(value - found[goal]) > _SLACK * max(1.0, abs(found[goal])):
            yield f"`{goal}` is {found[goal]:g}, the solver says {value:g}"
    if said.bound > said.value:
        yield f"the solver says {said.value:g}, at least {said.bound:g}"
    if "cost" in said.objective and None in prices:
        yield "a device is used of which no price is known"


def _sent(problem: PlaceProblem, placement: Placement, number: int) -> float:
    """Bytes a second that the devices of an instance send each other, adding up hidden states in a ring."""
    instance, found = placement.instances[number], 0.0
    if instance.stages:
        return stage_sent(problem, placement, number)
    for chain in instance.chains:
        load = problem.chains[chain].load
        if load is not None and problem.work is not None:
            nbytes = sum(problem.work.segments[segment].reduce_bytes for segment in problem.chains[chain].segments)
            tokens = float(load.rate_rps * (load.prompt_tokens + load.output_tokens))
            found += 2 * (len(instance.devices) - 1) * nbytes * tokens * placement.routes[chain].shares.get(number, 0.0)
    return found


def _routes(problem: PlaceProblem, placement: Placement) -> Iterator[str]:
    for chain, route in enumerate(placement.routes):
        weights = route.shares
        if route.chain != chain or not weights or abs(sum(weights.values()) - 1) > 1e-6:
            yield f"chain {chain} is not served in full"
        running = {number for number, item in enumerate(placement.instances) if chain in item.chains}
        if running != set(weights):
            yield f"chain {chain} is on instances that its route does not name, or the reverse"
    if len(placement.routes) != len(problem.chains):
        yield "not every chain has a route"


def _rules(problem: PlaceProblem, placement: Placement) -> Iterator[str]:
    for rule in problem.rules:
        if rule.kind in ("replicas", "nodes"):
            yield from _spread(problem, placement, rule)
            continue
        for instance in placement.instances:
            named = set(rule.chains) & set(instance.chains)
            others = set(instance.chains) - set(rule.chains)
            broken = (
                (rule.kind == "pin" and named and not rule.devices.issuperset(instance.devices))
                or (rule.kind == "apart" and len(named) > 1)
                or (rule.kind == "alone" and named and others)
            )
            if broken:
                yield f"`{rule.text}` does not hold"


def _spread(problem: PlaceProblem, placement: Placement, rule: PlaceRule) -> Iterator[str]:
    for chain in rule.chains:
        serving = [placement.instances[number] for number, part in placement.routes[chain].shares.items() if part > 0]
        nodes = {problem.devices[device].node for instance in serving for device in instance.devices}
        found = len(nodes) if rule.kind == "nodes" else len(serving)
        if found < rule.count:
            yield f"`{rule.text}` does not hold: there are {found}"


def _bytes(problem: PlaceProblem, placement: Placement) -> Iterator[str]:
    entries = {entry.device: entry for entry in placement.memory}
    for number, instance in enumerate(placement.instances):
        if instance.stages:
            yield from stage_bytes(problem, placement, number)
            continue
        sizes = sizes_of(problem, width=len(instance.devices))
        for device in instance.devices:
            own = problem.devices[device]
            used = sizes.layout(instance.chains, instance.kv_pages, reserve_bytes=own.reserve_bytes)
            room = used.used_bytes + own.headroom_bytes
            if room > own.memory_bytes or entries[device].kv_bytes != used.kv_bytes:
                yield f"instance {number} does not fit {own.address}"
            yield from _turns(problem, instance, entries[device], number)
        for group in {group for chain in instance.chains for group in problem.chains[chain].groups}:
            pages = instance.kv_pages.get(group, 0)
            longest = max(sizes.pages[chain].get(group, 0) for chain in instance.chains)
            expected = sum(
                IN_FLIGHT_MARGIN * in_flight(load) * weight * _pages(problem, chain, group)
                for chain in instance.chains
                if (load := problem.chains[chain].load) is not None and group in problem.chains[chain].groups
                for weight in (placement.routes[chain].shares.get(number, 0.0),)
            )
            if pages < longest or (
                instance.load is not None and pages < min(0.99 * expected - 1, longest * problem.max_rows)
            ):
                needed = f"{longest} and {expected:.1f} are needed"
                yield f"instance {number} has {pages} pages of KV group {group}, {needed}"


def _turns(problem: PlaceProblem, instance: InstanceEntry, entry: MemoryEntry, number: int) -> Iterator[str]:
    """Segments that take turns may, the largest chain's fit their room, and with those that stay the limit is kept."""
    turning = {turn.segment: turn.nbytes for turn in instance.turns}
    stay_bytes = 0
    for segment in instance.segments:
        turn, width = problem.segments[segment].turn, len(instance.devices)
        nbytes = 0 if turn is None else sum(tensor_share(tensor, width) for tensor in turn.tensors)
        stay_bytes += 0 if segment in turning else nbytes
        if turning.get(segment, nbytes) != nbytes:
            yield f"instance {number} has segment {segment} take turns, which cannot, or not with that size"
    for chain in instance.chains:
        if sum(turning.get(segment, 0) for segment in problem.chains[chain].segments) > instance.room_bytes:
            yield f"instance {number} has no room for the blocks of chain {chain}"
    limit = problem.blocks_limit_bytes
    if instance.room_bytes > entry.blocks_bytes or (limit is not None and stay_bytes + entry.blocks_bytes > limit):
        yield f"instance {number} has {stay_bytes} and {entry.blocks_bytes} bytes of blocks, more than it may"


def _pages(problem: PlaceProblem, chain: int, group: int) -> float:
    own = problem.chains[chain]
    assert own.load is not None
    tokens = float(own.load.prompt_tokens + own.load.output_tokens / 2)
    return min(tokens, own.max_model_len) / problem.groups[group].page_tokens


def _times(problem: PlaceProblem, placement: Placement) -> Iterator[str]:
    for number, instance in enumerate(placement.instances):
        if instance.load is None or problem.work is None:
            continue
        if instance.stages:
            yield from stage_times(problem, placement, number)
            continue
        loads = {chain: load for chain in instance.chains if (load := problem.chains[chain].load) is not None}
        if not loads:
            continue
        rates = _rates(problem, instance)
        if rates is None:
            yield f"instance {number} is on devices of which nothing is known"
            continue
        shares = {chain: placement.routes[chain].shares.get(number, 0.0) for chain in loads}
        tokens_per_s = sum(shares[chain] * decoded_per_s(load) for chain, load in loads.items())
        tau_s = paced_s(min(map(cadence_s, loads.values())), tokens_per_s, problem.max_rows)
        busy = rates.step_s + sum(
            sweep_s(problem.work.segments[segment], rates)
            for segment in instance.segments
            if any(problem.chains[chain].load is not None for chain in _through(problem, segment))
        )
        busy += sum(sides_sweep_s(problem.work.chains[chain], rates) for chain in loads)
        busy /= tau_s
        limit = 1.0
        for chain, load in loads.items():
            times = chain_times(
                problem.work.chains[chain], problem.work.segments, rates, load, step_tokens=problem.max_batched_tokens
            )
            busy += shares[chain] * float(load.rate_rps) * times.request_s(load)
            own = busy_limit(times.prompt_s, load)
            limit = min(limit, 0.0 if own is None else own * (1 - float(problem.headroom)))
        if busy > limit + _SLACK:
            yield f"instance {number} is busy for {busy:.3f} of its time, it may be for {limit:.3f}"
        said = instance.load.traffic + instance.load.sweeps
        if said < busy - _SLACK or (instance.load.cadence_s or 0.0) > tau_s + 1e-6:
            yield f"instance {number} says that it is busy for {said:.3f}, and is for {busy:.3f}"
        for chain, load in loads.items():
            times = chain_times(
                problem.work.chains[chain], problem.work.segments, rates, load, step_tokens=problem.max_batched_tokens
            )
            if load.ttft_s is not None and first_token_s(times.prompt_s, busy, tau_s) > float(load.ttft_s) + _SLACK:
                yield f"the first tokens of chain {chain} are late on instance {number}"


def _through(problem: PlaceProblem, segment: int) -> list[int]:
    return [chain for chain, own in enumerate(problem.chains) if segment in own.segments]


def _rates(problem: PlaceProblem, instance: InstanceEntry) -> DeviceRates | None:
    return problem.rates_of(problem.devices[instance.devices[0]].kind, len(instance.devices))
