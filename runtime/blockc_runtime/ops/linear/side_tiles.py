"""Who uses which fine-tune among the places of a launch, as kernels for CUDA read it.

In: the rows of each bank. Out: :class:`SideTiles`: tiles of neighbouring places that use one slot of one bank.
Invariant: no place is in two tiles; a tile is no longer than its table says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from blockc_runtime.ops.sides import SideBatch, SideRow, runs_of
from blockc_runtime.ops.transfer import on_device

# Places of a tile: tensor cores take no fewer than the least, and the more read a fine-tune less often.
FEW_PLACES, MANY_PLACES = 16, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SideTiles:
    """``values`` integers ``[count, 4]``: first place, number of places, slot, bank.

    ``used [1]``: how many of them there are, the others say nothing; ``places``: the most places of a tile.
    """

    values: Tensor
    used: Tensor
    count: int
    places: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticSides:
    """Who uses a bank, by a table of all banks that somebody else fills: there are no rows to read on the host.

    ``number``: what the table calls the bank.
    """

    number: int
    tiles: SideTiles


def tiles_of(batches: Sequence[SideBatch | StaticSides]) -> tuple[SideTiles, tuple[int, ...]]:
    """One table for all banks of a site, and what it calls them. It is made once a launch for the same batches."""
    first = batches[0]
    if isinstance(first, StaticSides):
        return first.tiles, tuple(batch.number for batch in batches if isinstance(batch, StaticSides))
    plain = tuple(batch for batch in batches if isinstance(batch, SideBatch))
    key = tuple(id(batch) for batch in plain)
    if key not in first.joined:
        first.joined[key] = plain, _made(plain)
    return first.joined[key][1], tuple(range(len(plain)))


def tile_values(banks: Iterable[tuple[int, Sequence[SideRow]]], places: int) -> list[int]:
    """Four numbers a tile. ``banks``: (number, its rows in order)."""
    values: list[int] = []
    for number, rows in banks:
        for first, count, slot in runs_of(rows):
            for start in range(first, first + count, places):
                values += (start, min(places, first + count - start), slot, number)
    return values


def _made(batches: Sequence[SideBatch]) -> SideTiles:
    banks = [(number, batch.rows) for number, batch in enumerate(batches)]
    longest = max((count for _, rows in banks for _, count, _ in runs_of(rows)), default=0)
    places = FEW_PLACES if longest <= FEW_PLACES else MANY_PLACES
    values = tile_values(banks, places)
    count = len(values) // 4
    numbers = on_device([*values, count], batches[0].device)
    return SideTiles(values=numbers[:-1].view(-1, 4), used=numbers[-1:], count=count, places=places)
