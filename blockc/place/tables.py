"""Cells and what is on them -> the tables of the plan: instances, routes and memory.

In: a problem, cells of devices with their chains. Out: entries. Invariant: every device's memory entry is a `Layout`
that fits it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from blockc.ir.layout import Layout
from blockc.place.cells import Cell, Views
from blockc.place.pages import share_pages
from blockc.place.problem import PlaceProblem
from blockc.place.sizes import Sizes
from blockc.place.slots import share_slots, slot_bytes
from blockc.place.turns import Room, share_room
from blockc.plan import BaselineEntry, InstanceEntry, LoadEntry, MemoryEntry, PriceEntry, RouteEntry, SolverEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The tables of the plan that placement decides. Instances and memory entries are in order of device.

    ``served``: of apps whose load does not fit in full, the part that has a place.
    """

    instances: tuple[InstanceEntry, ...]
    routes: tuple[RouteEntry, ...]
    memory: tuple[MemoryEntry, ...]
    baselines: BaselineEntry
    solver: SolverEntry
    price: PriceEntry | None = None
    served: Mapping[str, Fraction] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """A cell with its chains. ``expected``: pages by KV group that their load has in flight."""

    cell: Cell
    chains: tuple[int, ...]
    expected: Mapping[int, int] = field(default_factory=dict)
    load: LoadEntry | None = None


def placement_of(
    views: Views, filled: Sequence[Filled], routes: tuple[RouteEntry, ...], solver: SolverEntry
) -> Placement:
    """Write the tables. Routes name instances by their place in ``filled``."""
    problem = views.problem
    instances: list[InstanceEntry] = []
    memory = {device: empty_entry(problem, device) for device in range(len(problem.devices))}
    for item in filled:
        sizes = views.at(len(item.cell))
        offered_bytes = problem.devices[item.cell[0]].offered_bytes
        pages = share_pages(sizes, item.chains, offered_bytes=offered_bytes, expected=item.expected)
        slots = share_slots(sizes.problem, item.chains)
        kind = problem.devices[item.cell[0]].kind
        room = share_room(problem, item.chains, kind=kind, width=len(item.cell))
        memory |= {device: _memory(sizes, device, item.chains, pages, slots, room) for device in item.cell}
        instances.append(
            InstanceEntry(
                segments=tuple(
                    sorted({segment for chain in item.chains for segment in problem.chains[chain].segments})
                ),
                devices=item.cell,
                chains=item.chains,
                max_rows=problem.max_rows,
                kv_pages=pages,
                side_slots=slots,
                turns=room.turns,
                room_bytes=room.room_bytes,
                load=item.load,
            )
        )
    return Placement(
        instances=tuple(instances),
        routes=routes,
        memory=tuple(memory[device] for device in sorted(memory)),
        baselines=BaselineEntry(pm_bytes=problem.pm_bytes, ps_bytes=problem.ps_bytes, ours_bytes=problem.ours_bytes),
        solver=solver,
    )


def _memory(
    sizes: Sizes, device: int, chains: Sequence[int], pages: dict[int, int], slots: dict[int, int], room: Room
) -> MemoryEntry:
    """One device's share of its cell."""
    problem = sizes.problem
    used = sizes.layout(chains, pages, reserve_bytes=problem.devices[device].reserve_bytes)
    entry = memory_entry(problem, device, used)
    return entry.model_copy(
        update={
            "weights_bytes": used.weights_bytes + room.kept_bytes,
            "blocks_bytes": room.room_bytes + room.reading_bytes,
            "sides_bytes": slot_bytes(problem, chains, slots),
        }
    )


def memory_entry(problem: PlaceProblem, device: int, used: Layout) -> MemoryEntry:
    """A layout of a device, all of which is there at once."""
    own = problem.devices[device]
    assert used.used_bytes <= own.memory_bytes, "a placement must fit the memory that it was made for"
    return MemoryEntry(
        device=device,
        weights_bytes=used.weights_bytes,
        blocks_bytes=used.blocks_bytes,
        sides_bytes=used.sides_bytes,
        kv_bytes=used.kv_bytes,
        workspace_bytes=used.workspace_bytes,
        reserve_bytes=used.reserve_bytes,
        capacity_bytes=own.memory_bytes,
    )


def empty_entry(problem: PlaceProblem, device: int) -> MemoryEntry:
    """Of a device that runs nothing."""
    used = Layout(
        weights_bytes=0,
        sides_bytes=0,
        kv_bytes=0,
        workspace_bytes=0,
        reserve_bytes=problem.devices[device].reserve_bytes,
    )
    return memory_entry(problem, device, used)
