"""Decode rows of a step in buckets of fixed size, as one run of whole numbers.

In: rows of one token each. Out: what the kernels of a step read, laid out so that it lies at the same place in every
step of a bucket: a recorded graph finds it there. Invariant: rows that only fill up the bucket write to the scratch
page of each KV group and read nothing else; they use no fine-tune.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from blockc.ir.recorded import row_pages, table_numbers

# Places of one tile of the low-rank kernels (`ops.linear.side_tiles`).
_TILE_PLACES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupForm:
    """One KV group. ``scratch``: the page that no request is given; ``positions``: the most that a row may have."""

    page_tokens: int
    window: int | None
    scratch: int
    positions: int

    @property
    def row_pages(self) -> int:
        """The most pages that a row sees."""
        return row_pages(positions=self.positions, page_tokens=self.page_tokens, window=self.window)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRow:
    """``pages``: its page table in each group of the model, None where its chain has none.

    ``uses``: for each segment the bank and the slot of its fine-tune there, or None.
    """

    token: int
    position: int
    pages: tuple[tuple[int | None, ...] | None, ...]
    uses: tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLayout:
    """Where a bucket's numbers lie.

    ``tokens [B]``, ``positions [B]``; for each KV group ``slots [B]`` and ``rows [B, 4]``; for each segment ``tiles
    [B, 4]`` and how many of them are used; last the pages of all groups, one row after the other, to which ``rows``
    points. Forms as in `ops.attention.batch` and `ops.linear.side_tiles`.
    """

    bucket: int
    groups: tuple[GroupForm, ...]
    segments: int

    def slots_at(self, group: int) -> int:
        """Where the slots of a KV group begin."""
        return (2 + 5 * group) * self.bucket

    def rows_at(self, group: int) -> int:
        """Where the rows of a KV group begin."""
        return (3 + 5 * group) * self.bucket

    def tiles_at(self, segment: int) -> int:
        """Where the tiles of a segment begin."""
        return (2 + 5 * len(self.groups)) * self.bucket + segment * (4 * self.bucket + 1)

    def used_at(self, segment: int) -> int:
        """Where the number of tiles of a segment stands that are used."""
        return self.tiles_at(segment) + 4 * self.bucket

    @property
    def pages_at(self) -> int:
        """Where the pages begin."""
        return self.tiles_at(self.segments)

    @property
    def size(self) -> int:
        """The most numbers that there can be."""
        return table_numbers(self.bucket, [group.row_pages for group in self.groups], self.segments)

    def numbers(self, rows: Sequence[DecodeRow]) -> array[int]:
        """All of it, ending with the last page in use. At most ``bucket`` rows."""
        empty = self.bucket - len(rows)
        numbers = array("q", [row.token for row in rows] + [0] * empty)
        numbers.extend([row.position for row in rows] + [0] * empty)
        pages = array("q")
        for index, group in enumerate(self.groups):
            slots, table = _group(group, [(row.position, row.pages[index]) for row in rows], empty, pages)
            numbers.extend(slots)
            numbers.extend(table)
        for segment in range(self.segments):
            numbers.extend(_tiles([row.uses[segment] for row in rows], self.bucket))
        numbers.extend(pages)
        return numbers


def _group(
    group: GroupForm, rows: Sequence[tuple[int, tuple[int | None, ...] | None]], empty: int, pages: array[int]
) -> tuple[list[int], list[int]]:
    """Slots and rows of one KV group; what the rows see is added to ``pages``, the scratch page first."""
    scratch = len(pages)
    pages.append(group.scratch)
    slots: list[int] = []
    table: list[int] = []
    for place, (position, held) in enumerate([*rows, *[(0, None)] * empty]):
        if held is None:
            slots.append(group.scratch * group.page_tokens)
            table += (place, scratch, 0, 0)
            continue
        lowest = 0 if group.window is None else max(0, position - group.window + 1)
        base = lowest // group.page_tokens
        before = base * group.page_tokens
        seen = held[base : position // group.page_tokens + 1]
        own = seen[-1]
        if own is None or None in seen:
            raise ValueError(f"a page that position {position} sees is gone")
        slots.append(own * group.page_tokens + position % group.page_tokens)
        table += (place, len(pages), lowest - before, position - before)
        pages.extend(seen)  # type: ignore[arg-type]
    return slots, table


def _tiles(uses: Sequence[tuple[int, int] | None], bucket: int) -> list[int]:
    """Neighbours that use one slot together: as many tiles as there may be, and how many there are."""
    tiles: list[list[int]] = []
    for place, use in enumerate(uses):
        if use is None:
            continue
        bank, slot = use
        if tiles and tiles[-1][2:] == [slot, bank] and sum(tiles[-1][:2]) == place and tiles[-1][1] < _TILE_PLACES:
            tiles[-1][1] += 1
        else:
            tiles.append([place, 1, slot, bank])
    return [*(number for tile in tiles for number in tile), *[0] * (4 * (bucket - len(tiles))), len(tiles)]
