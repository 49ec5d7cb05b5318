"""A placement as text: which chains each device takes, with how many pages, and how good that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from blockc.plan import InstanceEntry, LoadEntry
from blockc.render.units import counted, format_bytes, printable

if TYPE_CHECKING:
    from blockc.place import Placement, PlaceProblem


def load_text(load: LoadEntry) -> str:
    """What an instance is expected to carry."""
    if load.cadence_s is None:
        return "nothing expected"
    return (
        f"a sweep every {1000 * load.cadence_s:g} ms: busy {load.traffic + load.sweeps:.0%} of at most "
        f"{load.limit:.0%} "
        f"(traffic {load.traffic:.0%}, sweeps {load.sweeps:.0%}), {load.rows:.1f} requests at once"
    )


def stage_lines(instance: InstanceEntry, addresses: Sequence[str]) -> Iterator[str]:
    """The stages of a pipeline."""
    for number, stage in enumerate(instance.stages):
        where = ", ".join(printable(addresses[device]) for device in stage.devices)
        yield f"    stage {number}: blocks {stage.first} to {stage.first + stage.count - 1} on {where}"


def render_placement(problem: PlaceProblem, placement: Placement | None) -> str:
    """What was to be placed, and where it went; a problem without a solution stands alone."""
    lines = [*_problem(problem), "", *(["no placement"] if placement is None else _placement(problem, placement))]
    return "\n".join(lines) + "\n"


def _problem(problem: PlaceProblem) -> Iterator[str]:
    yield f"TO PLACE  ({counted(len(problem.chains), 'chain')} on {counted(len(problem.devices), 'device')})"
    for device in problem.devices:
        yield (
            f"  device {printable(device.address)} ({device.kind}): {format_bytes(device.memory_bytes)}, "
            f"{format_bytes(device.reserve_bytes)} reserved"
        )
    for index, segment in enumerate(problem.segments):
        nbytes = sum(tensor.ref.nbytes for tensor in segment.tensors)
        yield (
            f"  segment {index}: {counted(len(segment.tensors), 'tensor')} of {format_bytes(nbytes)}, "
            f"activations {format_bytes(segment.activation_bytes)}"
        )
    for index, group in enumerate(problem.groups):
        yield (
            f"  KV group {index}: {counted(group.layers, 'layer')}, pages of {counted(group.page_tokens, 'token')}, "
            f"{format_bytes(group.page_bytes)} each"
        )
    for index, chain in enumerate(problem.chains):
        segments = " > ".join(map(str, chain.segments))
        yield (
            f"  chain {index} ({printable(chain.label)}): segments {segments}, "
            f"sides {format_bytes(chain.side_bytes)}, {counted(chain.max_model_len, 'token')}"
        )


def _placement(problem: PlaceProblem, placement: Placement) -> Iterator[str]:
    solver = placement.solver
    proof = f" by {solver.bound_kind}" if solver.history else ""
    used = len({device for instance in placement.instances for device in instance.devices})
    first = "" if solver.goal == "devices" else f"{solver.goal} {solver.value:.6g}, "
    yield (
        f"PLACEMENT  ({solver.status}: {max(1, used)} of {counted(len(problem.devices), 'device')}, {first}"
        f"at least {solver.bound:.6g}{proof}; {solver.solver}, seed {solver.seed})"
    )
    for index, instance in enumerate(placement.instances):
        devices = ", ".join(printable(problem.devices[device].address) for device in instance.devices)
        yield f"  instance {index} on {devices}: {counted(instance.max_rows, 'row')}"
        yield f"    segments {', '.join(map(str, instance.segments))}"
        yield f"    chains {', '.join(map(str, instance.chains))}"
        yield from stage_lines(instance, [device.address for device in problem.devices])
        if instance.load is not None:
            yield f"    {load_text(instance.load)}"
        for group, pages in instance.kv_pages.items():
            yield f"    KV group {group}: {counted(pages, 'page')}"
        for bank, slots in instance.side_slots.items():
            members = sum(problem.chains[chain].bank == bank for chain in instance.chains)
            yield f"    bank {bank}: {counted(slots, 'slot')} for {counted(members, 'fine-tune')}"
        for turn in instance.turns:
            where = "the host's memory" if turn.kept == "host" else "the zoo"
            yield f"    segment {turn.segment} takes turns: {format_bytes(turn.nbytes)} from {where}"
    for route in placement.routes:
        ways = " or ".join(" > ".join(map(str, way)) for way in route.alternatives)
        parts = f" ({', '.join(f'{weight:.0%}' for weight in route.weights)})" if route.weights else ""
        yield f"  chain {route.chain} runs on instance {ways}{parts}"
    for memory in placement.memory:
        yield (
            f"  memory of {printable(problem.devices[memory.device].address)}: "
            f"weights {format_bytes(memory.weights_bytes)}, "
            + (f"blocks that take turns {format_bytes(memory.blocks_bytes)}, " if memory.blocks_bytes else "")
            + f"sides {format_bytes(memory.sides_bytes)}, "
            f"KV pages {format_bytes(memory.kv_bytes)}, activations {format_bytes(memory.workspace_bytes)}, "
            f"reserve {format_bytes(memory.reserve_bytes)} of {format_bytes(memory.capacity_bytes)}"
        )
