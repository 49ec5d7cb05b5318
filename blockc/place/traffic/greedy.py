"""Packings by first fit from many orders: fast, and always there.

In: a packing. Out: cells, or None. Units go, base by base, to the open cell where they add least to the sweeps, then
to the fullest; where none has room, a new cell of the kind that leaves most for each device. Starts differ in their
order, by noise of a fixed seed; there is a fixed number of them, so that the same problem gives the same packing on
any machine.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from blockc.place.traffic.goals import is_mixed, values, weights
from blockc.place.traffic.packing import PARTS, PackedCell, Packing, faster

_SEED: Final = 7
# Pairs of units and groups that all starts together look at.
_EFFORT: Final = 20_000_000
_MOST_STARTS: Final = 60
_LEAST_STARTS: Final = 4
# Added sweeps count in steps of a fiftieth of a cell's time; below that the fullest cell is better.
_STEP: Final = PARTS // 50


class OpenCell:
    """A cell that is being filled."""

    __slots__ = (
        "activation", "block", "counts", "devices", "fixed", "forbidden", "kind", "known", "limit", "nbytes", "parts",
        "resident", "sweep_ns", "tau_ns", "tokens",
    )  # fmt: skip

    def __init__(self, kind: int, block: int, devices: tuple[int, ...]) -> None:
        self.kind, self.block, self.devices = kind, block, devices
        self.counts: dict[int, int] = {}
        self.forbidden: set[int] = set()
        # What `Filler.choose` found out of it as it is: most cells stay as they are for many rounds.
        self.known: dict[int, tuple[int, int] | None] = {}
        self.resident: set[int] = set()
        self.tau_ns: int | None = None
        self.limit = PARTS
        self.fixed = self.sweep_ns = self.parts = self.nbytes = self.activation = self.tokens = 0

    def copy(self) -> OpenCell:
        """Another with the same units, which can be filled on its own."""
        twin = OpenCell(self.kind, self.block, self.devices)
        for name in self.__slots__:
            value = getattr(self, name)
            setattr(twin, name, value.copy() if isinstance(value, dict | set) else value)
        return twin

    def packed(self) -> PackedCell:
        """As data."""
        return PackedCell(kind=self.kind, devices=self.devices, units=tuple(sorted(self.counts.items())))


@dataclass(slots=True)
class _Fit:
    """``added``: parts that sweeps take more; ``spare``: parts that are left."""

    added: int
    spare: int


class Filler:
    """Cells that are being filled, and the devices that are free."""

    def __init__(self, packing: Packing, best_kinds: Mapping[int, Sequence[int]]) -> None:
        """``best_kinds``: of every group, as `best_kinds` finds them."""
        self.packing = packing
        self.cells: list[OpenCell] = []
        self.free = [list(block.devices) for block in packing.blocks]
        self.best_kinds = best_kinds
        self._spread = frozenset(group for group, own in enumerate(packing.groups) if own.copies > 1)

    def fit(self, cell: OpenCell, group: int) -> _Fit | None:
        """Whether one more unit of a group has room, and what it adds."""
        packing = self.packing
        kind, own = packing.kinds[cell.kind], packing.groups[group]
        limit = min(cell.limit, kind.limit[group])
        parts = cell.parts + kind.unit_parts[group]
        if parts + cell.fixed > limit or limit == 0:
            return None
        if group in cell.forbidden:
            return None
        if group in self._spread and not self._spreads(group, cell.block, cell):
            return None
        nbytes = cell.nbytes + kind.unit_bytes[group] + max(cell.activation, kind.activation[group])
        tau_ns, sweep_ns = cell.tau_ns, cell.sweep_ns
        if group not in cell.counts:
            if own.devices is not None and not own.devices.issuperset(cell.devices):
                return None
            item_bytes, item_ns, resident = kind.item_bytes, kind.item_ns, cell.resident
            for item in own.items:
                if item not in resident:
                    nbytes += item_bytes[item]
                    sweep_ns += item_ns[item]
            tau_ns = faster(tau_ns, own.tau_ns)
        if nbytes > kind.offered_bytes:
            return None
        fixed = packing.swept_parts(kind, sweep_ns, tau_ns, cell.tokens + own.milli_tokens)
        if parts + fixed > limit:
            return None
        return _Fit(added=fixed - cell.fixed, spare=limit - parts - fixed)

    def _spreads(self, group: int, block: int, cell: OpenCell | None) -> bool:
        """Whether a unit in a cell, or in a new one of the block, leaves enough for all places of the group."""
        own, blocks = self.packing.groups[group], self.packing.blocks
        there = [other for other in self.cells if group in other.counts]
        left = own.units - 1 - sum(other.counts[group] for other in there)
        cells = len(there) + (cell is None or group not in cell.counts)
        nodes = {blocks[other.block].node for other in there} | {blocks[block].node}
        return cells + left >= own.replicas and len(nodes) + left >= own.nodes

    def add(self, cell: OpenCell, group: int) -> None:
        """Take a unit in, for which there is room."""
        cell.known = {}
        kind, own = self.packing.kinds[cell.kind], self.packing.groups[group]
        cell.parts += kind.unit_parts[group]
        cell.nbytes += kind.unit_bytes[group]
        cell.tokens += own.milli_tokens
        if group not in cell.counts:
            cell.activation = max(cell.activation, kind.activation[group])
            cell.limit = min(cell.limit, kind.limit[group])
            for item in own.items:
                if item not in cell.resident:
                    cell.nbytes += kind.item_bytes[item]
                    cell.sweep_ns += kind.item_ns[item]
            cell.resident.update(own.items)
            cell.forbidden |= own.apart
            cell.tau_ns = faster(cell.tau_ns, own.tau_ns)
        cell.fixed = self.packing.swept_parts(kind, cell.sweep_ns, cell.tau_ns, cell.tokens)
        cell.counts[group] = cell.counts.get(group, 0) + 1

    def choose(self, group: int) -> OpenCell | None:
        """An open cell with room: where least is added, then the fullest, then the first."""
        best: tuple[int, int] | None = None
        found = None
        # Whether it has room depends on that cell alone.
        alone = self.packing.groups[group].copies <= 1
        needed = [(kind.unit_parts[group], kind.offered_bytes - kind.unit_bytes[group]) for kind in self.packing.kinds]
        for cell in self.cells:
            # As `fit` would find; most cells are full, and a call for each is what takes the time.
            parts, most_bytes = needed[cell.kind]
            if cell.parts + cell.fixed + parts > cell.limit or cell.nbytes > most_bytes:
                continue
            if group in cell.known:
                own = cell.known[group]
            else:
                fit = self.fit(cell, group)
                own = None if fit is None else (fit.added // _STEP, fit.spare)
                if alone:
                    cell.known[group] = own
            if own is not None and (best is None or own < best):
                best, found = own, cell
        return found

    def private(self, cell: OpenCell) -> OpenCell:
        """A copy of an open cell that takes its place, so that the cell itself stays as it is."""
        place = self.cells.index(cell)
        self.cells[place] = cell.copy()
        return self.cells[place]

    def open(self, group: int, kinds: Sequence[int] | None = None) -> OpenCell | None:
        """A new cell for a group, of the first kind that there are devices for, where they are scarcest.

        ``kinds``: without them the best for the group.
        """
        packing, own = self.packing, self.packing.groups[group]
        allowed = own.devices
        for kind in self.best_kinds[group] if kinds is None else kinds:
            width = packing.kinds[kind].width
            options = []
            for number, block in enumerate(packing.blocks):
                if kind not in block.kinds or (group in self._spread and not self._spreads(group, number, None)):
                    continue
                free = [device for device in self.free[number] if allowed is None or device in allowed]
                if len(free) >= width:
                    options.append((len(self.free[number]), number, tuple(free[:width])))
            if options:
                _, number, devices = min(options)
                self.free[number] = [device for device in self.free[number] if device not in devices]
                cell = OpenCell(kind, number, devices)
                self.cells.append(cell)
                return cell
        return None

    def close(self, cell: OpenCell) -> None:
        """Give its devices back."""
        self.cells.remove(cell)
        self.free[cell.block] = sorted([*self.free[cell.block], *cell.devices])


def choices_of_kinds(packing: Packing) -> list[Mapping[int, Sequence[int]]]:
    """Ways to choose the kind of a new cell: the best for its price; where prices differ also the one that costs least.

    A rest of load needs no large cell, however cheap that is for what it carries.
    """
    best, own = best_kinds(packing), weights(packing, "cost")
    if not is_mixed(packing):
        return [best]
    return [best, {group: sorted(kinds, key=lambda kind: own[kind]) for group, kinds in best.items()}]


def best_kinds(packing: Packing) -> Mapping[int, Sequence[int]]:
    """For every group the kinds that a unit fits, those first that have most left for their weight beside its sweep."""
    own_weights = weights(packing)

    def left(kind: int, group: int) -> float:
        cell, own = packing.kinds[kind], packing.groups[group]
        room = cell.limit[group] - cell.fixed_parts(cell.path_ns(own), own.tau_ns)
        # In units of the group, so that fast kinds count for more; where nothing is expected, narrow ones.
        unit = cell.unit_parts[group]
        if not unit:
            return 1 / own_weights[kind]
        return min(room / unit, cell.limit[group] / packing.paced_parts(cell, group)) / own_weights[kind]

    able = {
        group: [kind for kind in range(len(packing.kinds)) if packing.can(kind, group)]
        for group in range(len(packing.groups))
    }
    return {
        group: sorted(kinds, key=lambda kind, group=group: (-left(kind, group), kind))  # type: ignore[misc]
        for group, kinds in able.items()
    }


def fill(
    packing: Packing, order: Sequence[int], kinds: Mapping[int, Sequence[int]], given: Sequence[PackedCell] = ()
) -> Filler | None:
    """All units, group by group in this order, beside those in ``given`` cells; None where one has no room."""
    filler = Filler(packing, kinds)
    placed = [0] * len(packing.groups)
    for earlier in given:
        opened = reopened(filler, earlier)
        for group, count in opened.counts.items():
            placed[group] += count
    for group in order:
        cell: OpenCell | None = None
        for _ in range(packing.groups[group].units - placed[group]):
            # Where one unit went, the next fits best, too, as long as there is room: no item is added there.
            if cell is None or filler.fit(cell, group) is None:
                cell = filler.choose(group) or filler.open(group)
            if cell is None or filler.fit(cell, group) is None:
                return None
            filler.add(cell, group)
    return filler


def reopened(filler: Filler, cell: PackedCell) -> OpenCell:
    """An earlier cell with as many of its units as there is room for."""
    block = next(number for number, own in enumerate(filler.packing.blocks) if cell.devices[0] in own.devices)
    opened = OpenCell(cell.kind, block, cell.devices)
    filler.free[block] = [device for device in filler.free[block] if device not in cell.devices]
    filler.cells.append(opened)
    for group, count in cell.units:
        for _ in range(min(count, filler.packing.groups[group].units)):
            if filler.fit(opened, group) is not None:
                filler.add(opened, group)
    return opened


def consolidate(filler: Filler) -> None:
    """Empty cells into others, the least busy for each device first, as long as one can be emptied."""
    kinds = filler.packing.kinds
    changed = True
    while changed:
        changed = False
        for cell in sorted(filler.cells, key=lambda item: (item.parts * kinds[item.kind].width, item.devices)):
            if _emptied(filler, cell):
                changed = True
                break


def _emptied(filler: Filler, cell: OpenCell) -> bool:
    """Move all units elsewhere and close the cell; or change nothing."""
    kinds = filler.packing.kinds
    cells = filler.cells
    width = kinds[cell.kind].width
    spare = sum(max(0, other.limit - other.parts) * kinds[other.kind].width for other in cells if other is not cell)
    if spare < cell.parts * width // 2:
        return False
    # What is moved into is copied first.
    filler.cells = [other for other in cells if other is not cell]
    copied: set[int] = set()
    for group in sorted(cell.counts, key=lambda item: (-kinds[cell.kind].unit_parts[item], item)):
        for _ in range(cell.counts[group]):
            found = filler.choose(group)
            if found is None:
                filler.cells = cells
                return False
            if id(found) not in copied:
                found = filler.private(found)
                copied.add(id(found))
            filler.add(found, group)
    filler.free[cell.block] = sorted([*filler.free[cell.block], *cell.devices])
    return True


def cheapen(filler: Filler) -> None:
    """Each cell on the cheapest free devices that hold all that it has, where prices differ."""
    if not is_mixed(filler.packing):
        return
    own, first = weights(filler.packing, "cost"), weights(filler.packing)
    for cell in sorted(filler.cells, key=lambda item: (-own[item.kind], item.devices)):
        for kind in sorted(range(len(own)), key=lambda kind: (own[kind], kind)):
            cheaper = own[kind] < own[cell.kind] and first[kind] <= first[cell.kind]
            if cheaper and _moved(filler, cell, kind):
                break


def _moved(filler: Filler, cell: OpenCell, kind: int) -> bool:
    """Move all units to a new cell of a kind, or change nothing."""
    kept, free = filler.cells, filler.free
    filler.cells, filler.free = [other for other in kept if other is not cell], [list(own) for own in free]
    filler.free[cell.block] = sorted([*filler.free[cell.block], *cell.devices])
    groups = sorted(cell.counts)
    opened = filler.open(groups[0], (kind,))
    for group in groups if opened is not None else ():
        for _ in range(cell.counts[group]):
            if opened is None or filler.fit(opened, group) is None:
                opened = None
                break
            filler.add(opened, group)
    if opened is None:
        filler.cells, filler.free = kept, free
    return opened is not None


def starts(packing: Packing) -> int:
    """How many orders are tried."""
    pairs = sum(group.units for group in packing.groups) * len(packing.groups)
    return max(_LEAST_STARTS, min(_MOST_STARTS, _EFFORT // max(1, pairs)))


def multi_start(packing: Packing, count: int | None = None) -> tuple[PackedCell, ...] | None:
    """The packing found that is best by the packing's goals; ties go to the first."""
    best: tuple[tuple[int, ...], tuple[PackedCell, ...]] | None = None
    choices = choices_of_kinds(packing)
    for number, order in enumerate(orders(packing, starts(packing) if count is None else count)):
        filler = fill(packing, order, choices[number % len(choices)])
        if filler is None:
            continue
        consolidate(filler)
        cheapen(filler)
        cells = tuple(sorted((cell.packed() for cell in filler.cells), key=lambda cell: cell.devices))
        value = values(packing, cells)
        if best is None or value < best[0]:
            best = value, cells
    return None if best is None else best[1]


def orders(packing: Packing, count: int) -> list[list[int]]:
    """Orders of groups: hottest family first, then by cadence and load; the first two without noise."""
    groups = range(len(packing.groups))
    family, heat = _families(packing)
    load = [load_of(packing, group) for group in groups]
    noise = random.Random(_SEED)  # noqa: S311 - of orders, not of secrets
    found = []
    for start in range(count):
        strength = 0.0 if start < 2 else 0.05 + 0.45 * noise.random()
        slow_first = -1 if start % 2 else 1
        hot = {name: value * (1 + strength * noise.uniform(-1, 1)) for name, value in sorted(heat.items())}
        own = [value * (1 + strength * noise.uniform(-1, 1)) for value in load]
        found.append(
            sorted(
                groups,
                key=lambda g: (
                    packing.groups[g].devices is None,
                    -hot[family[g]],
                    family[g],
                    slow_first * (packing.groups[g].tau_ns or 1 << 62),
                    -own[g],
                    g,
                ),
            )
        )
    return found


def load_of(packing: Packing, group: int) -> float:
    """All units as parts of a device, or as bytes where nothing is expected."""
    able = [kind for kind in packing.kinds if kind.limit[group]]
    units = packing.groups[group].units
    parts = min((units * kind.unit_parts[group] * kind.width / PARTS for kind in able), default=0.0)
    nbytes = min((kind.path_bytes(packing.groups[group]) / max(1, kind.offered_bytes) for kind in able), default=0.0)
    return parts + 1e-3 * nbytes


def _families(packing: Packing) -> tuple[list[int], dict[int, float]]:
    """Groups that share items, by their smallest common one, and each family's load."""
    root = list(range(packing.items))

    def find(item: int) -> int:
        while root[item] != item:
            root[item] = root[root[item]]
            item = root[item]
        return item

    for group in packing.groups:
        for item in group.items[1:]:
            low, high = sorted((find(group.items[0]), find(item)))
            root[high] = low
    family = [find(group.items[0]) if group.items else -1 - number for number, group in enumerate(packing.groups)]
    heat: dict[int, float] = {}
    for number, name in enumerate(family):
        heat[name] = heat.get(name, 0.0) + load_of(packing, number)
    return family, heat
