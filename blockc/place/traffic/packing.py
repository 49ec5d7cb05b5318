"""``Packing``: the problem in whole numbers, as greedy, bounds and models all see it.

A *group* is a chain, in ``units`` equal parts of its load; a unit takes its whole path inside one *cell*: 1, 2, 4 or
8 devices alike of one node that split every matrix. An *item* is all that the same groups need, wherever any of them
is: bytes that are resident, and a sweep in each step. Items of which nothing is expected anywhere have no sweep. A cell
steps as often as the fastest cadence that any of its groups asks for, or, where that is more often, as its tokens need
it: a step has one token of each request, and there are so many at most. Invariant: amounts are rounded up and
capacities down, so a packing that holds in whole numbers holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

# Of a cell's time, a second a second.
PARTS: Final = 10**7
# Nanoseconds and thousandths in which sweeps and tokens are counted.
FINE: Final = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A chain's load. ``tau_ns``: the slowest cadence it allows; None: nothing is expected of it.

    ``milli_tokens``: that a unit decodes a second, in thousandths. ``devices``: where it may run; None: anywhere.
    ``apart``: groups that it shares no cell with. ``replicas``, ``nodes``: cells and nodes that it is in, at least.
    """

    units: int
    tau_ns: int | None
    items: tuple[int, ...]
    milli_tokens: int
    devices: frozenset[int] | None = None
    apart: frozenset[int] = frozenset()
    replicas: int = 1
    nodes: int = 1

    @property
    def copies(self) -> int:
        """Cells that it is in, at least."""
        return max(self.replicas, self.nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellKind:
    """Cells alike. By item: bytes on each device, nanoseconds of a sweep. By group, of a unit: bytes, parts.

    ``limit[g]``: parts that the cell may be busy if it has group g; 0: it cannot have it. ``activation[g]``: bytes;
    the largest of a cell's groups counts. ``step_ns``: of every step. ``price``: of the whole cell, in millionths an
    hour. ``unit_sent[g]``: bytes a second that its devices send each other for a unit.
    """

    device: str
    width: int
    offered_bytes: int
    step_ns: int
    item_bytes: tuple[int, ...]
    item_ns: tuple[int, ...]
    unit_bytes: tuple[int, ...]
    unit_parts: tuple[int, ...]
    limit: tuple[int, ...]
    activation: tuple[int, ...]
    price: int = 0
    unit_sent: tuple[int, ...] = ()

    def fixed_parts(self, sweep_ns: int, tau_ns: int | None) -> int:
        """Parts that sweeps take at a cadence. ``sweep_ns``: of all items."""
        return 0 if tau_ns is None else -(-(sweep_ns + self.step_ns) * PARTS // tau_ns)

    def path_ns(self, group: Group) -> int:
        """A sweep of all that a group passes."""
        return sum(self.item_ns[item] for item in group.items)

    def path_bytes(self, group: Group) -> int:
        """Bytes of all that a group needs, without its traffic."""
        return sum(self.item_bytes[item] for item in group.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Devices of a node that are alike, with the kinds of cells that they can form, narrow ones first."""

    devices: tuple[int, ...]
    kinds: tuple[int, ...]
    node: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """The problem. ``rows``: requests that a step takes at most.

    ``goals``: what there is to be little of, first things first, as `goals.amount` counts it.
    """

    groups: tuple[Group, ...]
    items: int
    kinds: tuple[CellKind, ...]
    blocks: tuple[Block, ...]
    rows: int
    goals: tuple[str, ...] = ("devices", "peak_load")

    @property
    def devices(self) -> int:
        """How many there are."""
        return sum(len(block.devices) for block in self.blocks)

    @property
    def full_step(self) -> int:
        """Nanoseconds of a sweep times thousandths of tokens a second that are one part of a cell whose steps are full.

        ``sweep / 1e9 * (tokens / 1000 / rows)`` of a second, of which a part is a ten-millionth.
        """
        return FINE // PARTS * self.rows

    def swept_parts(self, kind: CellKind, sweep_ns: int, tau_ns: int | None, milli_tokens: int) -> int:
        """Parts that sweeps of all items take, at a cadence and with as many steps as the tokens need."""
        if tau_ns is None:
            return 0
        sweep = sweep_ns + kind.step_ns
        # The greedy search is here most of its time, so both are compared before anything is divided.
        if milli_tokens * tau_ns <= FINE * self.rows:
            return -(-sweep * PARTS // tau_ns)
        return -(-sweep * milli_tokens // self.full_step)

    def paced_parts(self, kind: CellKind, group: int, count: int = 1) -> int:
        """Parts that units of a group take of any cell, with a sweep of their own path in steps full of them."""
        own = self.groups[group]
        sweep = (kind.path_ns(own) + kind.step_ns) * own.milli_tokens * count
        return kind.unit_parts[group] * count + sweep // self.full_step

    def can(self, kind: int, group: int) -> bool:
        """Whether an empty cell of the kind takes a unit of the group."""
        cell, own = self.kinds[kind], self.groups[group]
        limit = cell.limit[group]
        swept = self.swept_parts(cell, cell.path_ns(own), own.tau_ns, own.milli_tokens)
        return (
            limit > 0
            and swept + cell.unit_parts[group] <= limit
            and cell.path_bytes(own) + cell.unit_bytes[group] + cell.activation[group] <= cell.offered_bytes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedCell:
    """``units``: (group, how many), by group."""

    kind: int
    devices: tuple[int, ...]
    units: tuple[tuple[int, int], ...]


def devices_of(cells: Iterable[PackedCell]) -> int:
    """How many devices the cells use."""
    return sum(len(cell.devices) for cell in cells)


def faster(one: int | None, other: int | None) -> int | None:
    """The faster of two cadences, of which either may be none."""
    return min(one, other) if one is not None and other is not None else one if other is None else other


def cadence_of(packing: Packing, cell: PackedCell) -> int | None:
    """The fastest cadence that any of a cell's groups asks for, in nanoseconds."""
    taus = [tau for group, _ in cell.units if (tau := packing.groups[group].tau_ns) is not None]
    return min(taus, default=None)


def sweep_of(packing: Packing, cell: PackedCell) -> int:
    """Nanoseconds of a sweep of all that a cell has."""
    kind = packing.kinds[cell.kind]
    return sum(kind.item_ns[item] for item in {item for group, _ in cell.units for item in packing.groups[group].items})


def traffic_of(packing: Packing, cell: PackedCell) -> int:
    """Parts that a cell's units take, beside sweeps."""
    return sum(packing.kinds[cell.kind].unit_parts[group] * count for group, count in cell.units)


def tokens_of(packing: Packing, cell: PackedCell) -> int:
    """Thousandths of tokens that a cell decodes a second."""
    return sum(packing.groups[group].milli_tokens * count for group, count in cell.units)


def busy_parts(packing: Packing, cell: PackedCell) -> int:
    """How busy a cell is, made afresh."""
    kind, tau_ns = packing.kinds[cell.kind], cadence_of(packing, cell)
    swept = packing.swept_parts(kind, sweep_of(packing, cell), tau_ns, tokens_of(packing, cell))
    return swept + traffic_of(packing, cell)


def cell_problem(packing: Packing, cell: PackedCell) -> str | None:
    """What does not hold of a cell, in words; None if it holds. Sums are made afresh."""
    kind = packing.kinds[cell.kind]
    resident = {item for group, _ in cell.units for item in packing.groups[group].items}
    if busy_parts(packing, cell) > min(kind.limit[group] for group, _ in cell.units):
        return "is busier than it may be"
    nbytes = sum(kind.item_bytes[item] for item in resident)
    nbytes += sum(kind.unit_bytes[group] * count for group, count in cell.units)
    if nbytes + max(kind.activation[group] for group, _ in cell.units) > kind.offered_bytes:
        return "takes more memory than it has"
    return _rule_problem(packing, cell)


def _rule_problem(packing: Packing, cell: PackedCell) -> str | None:
    present = {group for group, _ in cell.units}
    for group in present:
        own = packing.groups[group]
        if own.devices is not None and not own.devices.issuperset(cell.devices):
            return f"has group {group}, which is pinned elsewhere"
        if own.apart & present:
            return f"has group {group} beside one that it is to be apart from"
    return None


def packing_problem(packing: Packing, cells: Iterable[PackedCell]) -> str | None:
    """What does not hold of a packing, in words; None if it holds."""
    given: dict[int, int] = {}
    used: set[int] = set()
    held = tuple(cells)
    for number, cell in enumerate(held):
        if len(cell.devices) != packing.kinds[cell.kind].width or used & set(cell.devices):
            return f"cell {number} has devices that it cannot have"
        if not any(cell.kind in block.kinds and set(cell.devices) <= set(block.devices) for block in packing.blocks):
            return f"cell {number} is on devices of another kind or of several nodes"
        used |= set(cell.devices)
        problem = cell_problem(packing, cell)
        if problem is not None:
            return f"cell {number} {problem}"
        for group, count in cell.units:
            given[group] = given.get(group, 0) + count
    if given != {group: own.units for group, own in enumerate(packing.groups)}:
        return "some units are nowhere, or twice"
    return _spread_problem(packing, held)


def _spread_problem(packing: Packing, cells: tuple[PackedCell, ...]) -> str | None:
    for group, own in enumerate(packing.groups):
        if own.copies == 1:
            continue
        there = [cell for cell in cells if group in dict(cell.units)]
        nodes = {block.node for block in packing.blocks for cell in there if cell.devices[0] in block.devices}
        if len(there) < own.replicas or len(nodes) < own.nodes:
            return f"group {group} is in {len(there)} cells of {len(nodes)} nodes, which is too few"
    return None


def most_copies(packing: Packing, group: int) -> tuple[int, int]:
    """In how many cells, and on how many nodes, a group can be at most."""
    own, cells, nodes = packing.groups[group], 0, set()
    for block in packing.blocks:
        allowed = sum(own.devices is None or device in own.devices for device in block.devices)
        width = min((packing.kinds[kind].width for kind in block.kinds if packing.can(kind, group)), default=None)
        if width is not None and allowed >= width:
            cells += allowed // width
            nodes.add(block.node)
    return cells, len(nodes)


def counts(cells: Iterable[PackedCell]) -> Mapping[int, int]:
    """Cells by kind."""
    found: dict[int, int] = {}
    for cell in cells:
        found[cell.kind] = found.get(cell.kind, 0) + 1
    return found
