"""What a spec wants little of, first things first, in whole numbers.

In: a packing, or cells of it. Out: amounts by goal, of which less is better. ``devices`` and ``cost`` are *counted*: a
cell of a kind always has the same weight, whatever is in it, so that types of cells can be counted and bounded by it.
``communication`` and ``memory`` add up over cells, too, but by what is in them. ``peak_load`` and ``slo`` are those of
one cell: of all the busiest, and the nearest to what its targets let it be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from blockc.place.traffic.packing import PARTS, PackedCell, Packing, busy_parts

COUNTED: Final = ("devices", "cost")
PEAKS: Final = ("peak_load", "slo")
# Millionths of money an hour.
MICRO: Final = 10**6
# Beyond them sums are not looked at one by one.
_MOST_STEPS: Final = 20_000


def counted(packing: Packing) -> str:
    """The goal that cells are counted by: the first that they can be counted by."""
    return next(goal for goal in packing.goals if goal in COUNTED)


def weights(packing: Packing, goal: str | None = None) -> tuple[int, ...]:
    """Of a cell of each kind, by a counted goal; without one by the packing's own."""
    by_price = (goal or counted(packing)) == "cost"
    return tuple(kind.price if by_price else kind.width for kind in packing.kinds)


def spent(packing: Packing, cells: Iterable[PackedCell]) -> int:
    """What the cells weigh."""
    own = weights(packing)
    return sum(own[cell.kind] for cell in cells)


def most_spent(packing: Packing) -> int:
    """What all devices weigh."""
    own = weights(packing)
    return sum(len(block.devices) * own[block.kinds[0]] for block in packing.blocks)


def step_of(weight: Sequence[int]) -> int:
    """What all weights are multiples of."""
    return max(1, math.gcd(*weight))


def next_sum(weight: Sequence[int], value: int) -> int:
    """The least that cells of these weights can add up to and that is no less than a value."""
    step = step_of(weight)
    least, own = -(-value // step), sorted({item // step for item in weight})
    if least > _MOST_STEPS:
        return least * step
    sums = [True] + [False] * (least + own[0])
    for total in range(1, len(sums)):
        sums[total] = any(item <= total and sums[total - item] for item in own)
    return step * next(total for total in range(least, len(sums)) if sums[total])


def is_mixed(packing: Packing) -> bool:
    """Whether what is spent for a device depends on which it is."""
    return "cost" in packing.goals and len({kind.price // kind.width for kind in packing.kinds}) > 1


def amount(packing: Packing, goal: str, cells: Sequence[PackedCell]) -> int:
    """Of one goal: devices, millionths of money an hour, bytes a second, bytes, ten-millionths of a cell's time."""
    kinds = packing.kinds
    if goal in COUNTED:
        own = weights(packing, goal)
        return sum(own[cell.kind] for cell in cells)
    if goal == "communication":
        return sum(kinds[cell.kind].unit_sent[group] * count for cell in cells for group, count in cell.units)
    if goal == "memory":
        return sum(
            kinds[cell.kind].width * sum(kinds[cell.kind].item_bytes[item] for item in resident)
            for cell in cells
            for resident in ({item for group, _ in cell.units for item in packing.groups[group].items},)
        )
    busy = [(busy_parts(packing, cell), cell) for cell in cells]
    if goal == "peak_load":
        return max((parts for parts, _ in busy), default=0)
    limits = [min(kinds[cell.kind].limit[group] for group, _ in cell.units) for cell in cells]
    return max((parts * PARTS // limit for (parts, _), limit in zip(busy, limits, strict=True)), default=0)


def values(packing: Packing, cells: Sequence[PackedCell]) -> tuple[int, ...]:
    """Of all goals, in their order."""
    return tuple(amount(packing, goal, cells) for goal in packing.goals)


def said(goal: str, value: int) -> float:
    """As a plan says it: devices, money an hour, bytes a second, bytes, a part of a cell's time."""
    return value / {"cost": MICRO, "peak_load": PARTS, "slo": PARTS}.get(goal, 1)


def capped(packing: Packing, goal: str, parts: int) -> Packing:
    """No cell is busier than ``parts``, or by ``slo`` than that part of its limit; what is wanted next comes first."""
    return replace(
        packing,
        goals=tuple(other for other in packing.goals if other != goal),
        kinds=tuple(
            replace(
                kind,
                limit=tuple(
                    min(limit, parts) if goal == "peak_load" else limit * parts // PARTS for limit in kind.limit
                ),
            )
            for kind in packing.kinds
        ),
    )
