"""Rows of a step in buckets of fixed size, as one run of whole numbers.

In: rows of one token each, then rows of several. Out: what the kernels of a step read, laid out so that it lies at the
same place in every step of a bucket: a recorded graph finds it there. Invariant: places that only fill up the bucket
write to the scratch page of each KV group and read nothing else; they use no fine-tune.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from blockc.ir.recorded import TILE_PLACES, Bucket, Paged, most_tiles, table_numbers
from blockc_runtime.ops.attention.rows import KvRow
from blockc_runtime.ops.linear.side_tiles import FEW_PLACES


@dataclass(frozen=True, kw_only=True)
class GroupForm(Paged):
    """One KV group. ``scratch``: the page that no request is given."""

    scratch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """``tokens`` from position ``start`` on, of which the last ``samples`` want logits.

    ``pages``: its page table in each group of the model, None where its chain has none. ``uses``: for each segment the
    bank and the slot of its fine-tune there, or None.
    """

    tokens: tuple[int, ...]
    start: int
    samples: int
    pages: tuple[tuple[int | None, ...] | None, ...]
    uses: tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLayout:
    """Where a bucket's numbers lie.

    ``tokens [T]``, ``positions [T]``; for each KV group ``slots [T]``, ``rows [singles, 4]`` and ``chunks [chunks,
    4]``; for each segment ``tiles [most_tiles, 4]`` and how many of them are used; where there are chunks such tiles
    once more, of places among those that want logits, and these ``logits`` places; last the pages of all groups, one
    row after the other, to which ``rows`` and ``chunks`` point. Forms as in `ops.attention.batch` and
    `ops.linear.side_tiles`.
    """

    bucket: Bucket
    groups: tuple[GroupForm, ...]
    segments: int

    @property
    def tile_places(self) -> int:
        """The most places of a tile."""
        return TILE_PLACES if self.bucket.chunked else FEW_PLACES

    def slots_at(self, group: int) -> int:
        """Where the slots of a KV group begin."""
        return 2 * self.bucket.tokens + group * (self.bucket.tokens + 4 * self.bucket.logits)

    def rows_at(self, group: int) -> int:
        """Where the rows of one token of a KV group begin."""
        return self.slots_at(group) + self.bucket.tokens

    def chunks_at(self, group: int) -> int:
        """Where the rows of several tokens of a KV group begin."""
        return self.rows_at(group) + 4 * self.bucket.singles

    def tiles_at(self, segment: int, *, selects: bool = False) -> int:
        """Where the tiles of a segment begin. ``selects``: among the places that want logits, if there are chunks."""
        number = segment + (self.segments if selects and self.bucket.chunked else 0)
        return self.slots_at(len(self.groups)) + number * (4 * most_tiles(self.bucket) + 1)

    def used_at(self, segment: int, *, selects: bool = False) -> int:
        """Where the number of those tiles stands that are used."""
        return self.tiles_at(segment, selects=selects) + 4 * most_tiles(self.bucket)

    @property
    def logits_at(self) -> int:
        """Where the places begin that want logits."""
        return self.tiles_at(self.segments, selects=True)

    @property
    def pages_at(self) -> int:
        """Where the pages begin."""
        return self.logits_at + (self.bucket.logits if self.bucket.chunked else 0)

    @property
    def size(self) -> int:
        """The most numbers that there can be."""
        return table_numbers(self.bucket, self.groups, self.segments)

    def numbers(self, rows: Sequence[TableRow]) -> array[int]:
        """All of it, ending with the last page in use. No more rows of each kind than ``bucket`` has."""
        singles = [row for row in rows if len(row.tokens) == 1]
        chunks = [row for row in rows if len(row.tokens) > 1]
        firsts = _firsts(singles, 0) + _firsts(chunks, self.bucket.singles)
        tokens, positions = (array("q", bytes(8 * self.bucket.tokens)) for _ in range(2))
        for first, row in zip(firsts, rows, strict=True):
            stop = first + len(row.tokens)
            tokens[first:stop] = array("q", row.tokens)
            positions[first:stop] = array("q", range(row.start, row.start + len(row.tokens)))
        numbers, pages = tokens + positions, array("q")
        for index, group in enumerate(self.groups):
            numbers += self._group(group, index, list(zip(firsts, rows, strict=True)), len(singles), pages)
        counts = [len(row.tokens) for row in rows]
        for segment in range(self.segments):
            numbers += self._tiles(segment, rows, firsts, counts)
        if self.bucket.chunked:
            samples = [row.samples for row in rows]
            for segment in range(self.segments):
                numbers += self._tiles(segment, rows, list(accumulate(samples, initial=0))[:-1], samples)
            numbers += self._logits(firsts, rows)
        return numbers + pages

    def _group(
        self, group: GroupForm, index: int, rows: Sequence[tuple[int, TableRow]], singles: int, pages: array[int]
    ) -> array[int]:
        """Slots and rows of one KV group; what the rows see is added to ``pages``, the scratch page first."""
        scratch = len(pages)
        pages.append(group.scratch)
        slots = array("q", [group.scratch * group.page_tokens]) * self.bucket.tokens
        table = array("q")
        for place in range(singles, self.bucket.singles):
            table.extend((place, scratch, 0, 0))
        alone, several = array("q"), array("q")
        for first, row in rows:
            held, count = row.pages[index], len(row.tokens)
            if held is None:
                entry = (first, scratch, 0, 0) if count == 1 else (first, 0, scratch, 0)
            else:
                own = KvRow(first=first, count=count, start=row.start, pages=held)
                slots[first : first + count] = array("q", own.slots(group.page_tokens))
                lowest = own.first_visible(group.window)
                base = lowest // group.page_tokens
                before = base * group.page_tokens
                seen = held[base : (row.start + count - 1) // group.page_tokens + 1]
                if None in seen:
                    raise ValueError(f"a page that position {row.start} sees is gone")
                entry = (
                    (first, len(pages), lowest - before, row.start - before)
                    if count == 1
                    else (first, count, len(pages), row.start - before)
                )
                pages.extend(seen)  # type: ignore[arg-type]
            (alone if count == 1 else several).extend(entry)
        empty = self.bucket.chunks - len(several) // 4
        return slots + alone + table + several + array("q", [0, 0, scratch, 0]) * empty

    def _tiles(
        self, segment: int, rows: Sequence[TableRow], firsts: Sequence[int], counts: Sequence[int]
    ) -> array[int]:
        """Neighbours that use one slot together: as many tiles as there may be, and how many there are."""
        runs: list[list[int]] = []
        for row, first, count in zip(rows, firsts, counts, strict=True):
            use = row.uses[segment]
            if use is None or not count:
                continue
            bank, slot = use
            if runs and runs[-1][2:] == [slot, bank] and sum(runs[-1][:2]) == first:
                runs[-1][1] += count
            else:
                runs.append([first, count, slot, bank])
        tiles = array("q")
        for first, count, slot, bank in runs:
            for begin in range(0, count, self.tile_places):
                tiles.extend((first + begin, min(self.tile_places, count - begin), slot, bank))
        used = len(tiles) // 4
        return tiles + array("q", bytes(32 * (most_tiles(self.bucket) - used))) + array("q", [used])

    def _logits(self, firsts: Sequence[int], rows: Sequence[TableRow]) -> array[int]:
        """The places that want logits, in order, and 0 for those that there may be more."""
        wanted = array("q")
        for first, row in zip(firsts, rows, strict=True):
            stop = first + len(row.tokens)
            wanted.extend(range(stop - row.samples, stop))
        return wanted + array("q", bytes(8 * (self.bucket.logits - len(wanted))))


def _firsts(rows: Sequence[TableRow], first: int) -> list[int]:
    """The first place of each, one behind the other."""
    firsts = []
    for row in rows:
        firsts.append(first)
        first += len(row.tokens)
    return firsts
