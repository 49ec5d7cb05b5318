"""A plan from an earlier one: as it was with what has to change changed, or made anew, whichever is worth it.

In: a packing, what the earlier plan has where, a solution from scratch. Out: cells and the bytes to load. *Repair*
keeps the earlier cells with all units that still fit and puts the others where least has to be loaded. *Scratch* is
the solution with its cells on the devices where most of their weights lie already (an assignment problem). The one
with fewer devices (or of lower cost, if that is wanted first) is taken, of those that load no more than the budget; if
both load more, the one that loads less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from blockc.ir.layout import tensor_share
from blockc.place.assign import cheapest
from blockc.place.cells import Views
from blockc.place.problem import PlaceBefore
from blockc.place.traffic.goals import spent
from blockc.place.traffic.greedy import choices_of_kinds, fill, orders
from blockc.place.traffic.packing import PackedCell, Packing, packing_problem

_FAR: Final = 10**12
_KIB: Final = 1 << 10


def replanned(
    views: Views, packing: Packing, scratch: Sequence[PackedCell], before: PlaceBefore, *, budget_bytes: int | None
) -> tuple[tuple[PackedCell, ...], int]:
    """The cells, and the bytes that are loaded."""
    options = [named(views, packing, scratch, before)]
    repaired = repair(packing, before)
    if repaired is not None:
        options.append(repaired)
    priced = [(moved_bytes(views, cells, before), cells) for cells in options]
    within = [item for item in priced if budget_bytes is None or item[0] <= budget_bytes]
    if within:
        moved, cells = min(within, key=lambda item: (spent(packing, item[1]), item[0]))
    else:
        moved, cells = min(priced, key=lambda item: (item[0], spent(packing, item[1])))
    return cells, moved


def moved_bytes(views: Views, cells: Sequence[PackedCell], before: PlaceBefore) -> int:
    """Weights and sides that lie on devices which did not have them. A share of another width is another thing.

    Sides count as new where a stage had some of them.
    """
    return sum(_loaded(views, cell, device, before) for cell in cells for device in cell.devices)


def _loaded(views: Views, cell: PackedCell, device: int, before: PlaceBefore) -> int:
    problem, width = views.problem, len(cell.devices)
    alike = before.widths.get(device) == width
    had = before.tensors.get(device, frozenset()) if alike else frozenset()
    whole = alike and device not in before.parts
    held = before.chains.get(device, frozenset()) if whole else frozenset()
    chains = [group for group, _ in cell.units]
    segments = {segment for chain in chains for segment in problem.chains[chain].segments}
    tensors = {tensor for segment in segments for tensor in problem.segments[segment].tensors}
    nbytes = sum(tensor_share(tensor, width) for tensor in tensors if tensor.ref.digest not in had)
    sides = views.at(width).problem.chains
    return nbytes + sum(sides[chain].side_bytes for chain in chains if chain not in held)


def repair(packing: Packing, before: PlaceBefore) -> tuple[PackedCell, ...] | None:
    """The earlier cells, with what no longer fits elsewhere; None where that is nowhere."""
    given: list[PackedCell] = []
    for cell in before.cells:
        kind = _kind(packing, cell.devices)
        if kind is not None and cell.chains:
            units = tuple(
                sorted((chain, max(1, round(weight * packing.groups[chain].units))) for chain, weight in cell.chains)
            )
            given.append(PackedCell(kind=kind, devices=cell.devices, units=_trimmed(packing, units, given)))
    given = [cell for cell in given if cell.units]
    filler = fill(packing, orders(packing, 1)[0], choices_of_kinds(packing)[0], given)
    if filler is None:
        return None
    cells = (cell.packed() for cell in filler.cells if cell.counts)
    return tuple(sorted(cells, key=lambda cell: cell.devices))


def _trimmed(
    packing: Packing, units: Sequence[tuple[int, int]], given: Sequence[PackedCell]
) -> tuple[tuple[int, int], ...]:
    """No more units of a group than there are beside those that earlier cells have."""
    found = []
    for group, count in units:
        placed = sum(dict(cell.units).get(group, 0) for cell in given)
        left = min(count, packing.groups[group].units - placed)
        if left > 0:
            found.append((group, left))
    return tuple(found)


def _kind(packing: Packing, devices: tuple[int, ...]) -> int | None:
    for block in packing.blocks:
        if set(devices) <= set(block.devices):
            return next((kind for kind in block.kinds if packing.kinds[kind].width == len(devices)), None)
    return None


def named(views: Views, packing: Packing, cells: Sequence[PackedCell], before: PlaceBefore) -> tuple[PackedCell, ...]:
    """The same cells on devices where least has to be loaded. Wide cells change places among themselves."""
    wide = {device for cell in cells if len(cell.devices) > 1 for device in cell.devices}
    found: list[PackedCell] = []
    for kind in sorted({cell.kind for cell in cells}):
        own = [cell for cell in cells if cell.kind == kind]
        places = [cell.devices for cell in own]
        if packing.kinds[kind].width == 1:
            free = sorted(d for block in packing.blocks if kind in block.kinds for d in block.devices if d not in wide)
            places = [(device,) for device in free]
        found += _assigned(views, packing, own, places, before)
    moved = tuple(sorted(found, key=lambda cell: cell.devices))
    # Places are given one by one, so what is to be on several nodes may come to be on one.
    return tuple(cells) if packing_problem(packing, moved) is not None else moved


def _assigned(
    views: Views, packing: Packing, cells: Sequence[PackedCell], places: Sequence[tuple[int, ...]], before: PlaceBefore
) -> list[PackedCell]:
    costs = []
    for own in cells:
        row = []
        for devices in places:
            cell = PackedCell(kind=own.kind, devices=devices, units=own.units)
            allowed = all(
                group.devices is None or group.devices.issuperset(devices)
                for group in (packing.groups[number] for number, _ in cell.units)
            )
            row.append(moved_bytes(views, [cell], before) // _KIB if allowed else _FAR)
        costs.append(row)
    return [
        PackedCell(kind=cell.kind, devices=places[column], units=cell.units)
        for cell, column in zip(cells, cheapest(costs), strict=True)
    ]
