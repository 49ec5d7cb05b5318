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

from blockc.ir.recorded import TILE_PLACES, Bucket, Paged, most_tiles, table_numbers, tile_numbers
from blockc_runtime.ops.linear.side_tiles import FEW_PLACES


@dataclass(frozen=True, kw_only=True)
class GroupForm(Paged):
    """One KV group. ``scratch``: the page that no request is given."""

    scratch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """``tokens`` from position ``start`` on, of which the last ``samples`` want logits.

    ``pages``: its page table (`table_of`) in each group of the model, None where its chain has none. ``uses``: for each
    segment the bank and the slot of its fine-tune there, or None.
    """

    tokens: tuple[int, ...]
    start: int
    samples: int
    pages: tuple[array[int] | None, ...]
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
        return self.slots_at(len(self.groups)) + number * tile_numbers(self.bucket)

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
        chunks = rows[len(singles) :]
        counts = [len(row.tokens) for row in chunks]
        starts = list(accumulate(counts, initial=self.bucket.singles))[:-1]
        empty = array("q", bytes(8 * (self.bucket.singles - len(singles))))
        tokens = array("q", [row.tokens[0] for row in singles]) + empty
        positions = array("q", [row.start for row in singles]) + empty
        for row in chunks:
            tokens.extend(row.tokens)
            positions.extend(range(row.start, row.start + len(row.tokens)))
        rest = array("q", bytes(8 * (self.bucket.tokens - len(tokens))))
        numbers, pages = tokens + rest + positions + rest, array("q")
        for index, group in enumerate(self.groups):
            scratch = len(pages)
            pages.append(group.scratch)
            slots, table = self._singles(group, scratch, [(row.start, row.pages[index]) for row in singles], pages)
            more, rows_of_chunks = self._chunks(group, index, scratch, starts, chunks, pages)
            numbers += slots + more + table + rows_of_chunks
        firsts, counts = [*range(len(singles)), *starts], [1] * len(singles) + counts
        for segment in range(self.segments):
            numbers += self._tiles(segment, rows, firsts, counts)
        if self.bucket.chunked:
            samples = [row.samples for row in rows]
            for segment in range(self.segments):
                numbers += self._tiles(segment, rows, list(accumulate(samples, initial=0))[:-1], samples)
            numbers += self._logits(firsts, counts, samples)
        return numbers + pages

    def _singles(
        self, group: GroupForm, scratch: int, rows: Sequence[tuple[int, array[int] | None]], pages: array[int]
    ) -> tuple[array[int], array[int]]:
        """Slots and rows of those of one token; what they see is added to ``pages``."""
        size, window = group.page_tokens, group.window
        slots: list[int] = []
        table: list[int] = []
        for place, (position, held) in enumerate(rows):
            if held is None:
                slots.append(group.scratch * size)
                table += (place, scratch, 0, 0)
                continue
            lowest = 0 if window is None else max(0, position - window + 1)
            base, last = lowest // size, position // size
            seen = held[base : last + 1]
            _check(seen, position)
            slots.append(held[last] * size + position % size)
            table += (place, len(pages), lowest - base * size, position - base * size)
            pages += seen
        for place in range(len(rows), self.bucket.singles):
            slots.append(group.scratch * size)
            table += (place, scratch, 0, 0)
        return array("q", slots), array("q", table)

    def _chunks(
        self,
        group: GroupForm,
        index: int,
        scratch: int,
        starts: Sequence[int],
        rows: Sequence[TableRow],
        pages: array[int],
    ) -> tuple[array[int], array[int]]:
        """The same of those of several tokens."""
        size, window = group.page_tokens, group.window
        slots, table = array("q"), array("q")
        for first, row in zip(starts, rows, strict=True):
            held, count = row.pages[index], len(row.tokens)
            if held is None:
                slots.extend([group.scratch * size] * count)
                table.extend((first, 0, scratch, 0))
                continue
            stop = row.start + count
            base = 0 if window is None else max(0, row.start - window + 1) // size
            seen = held[base : (stop - 1) // size + 1]
            _check(seen, row.start)
            slots.extend([held[position // size] * size + position % size for position in range(row.start, stop)])
            table.extend((first, count, len(pages), row.start - base * size))
            pages += seen
        slots.extend([group.scratch * size] * (self.bucket.chunked - len(slots)))
        table.extend((0, 0, scratch, 0) * (self.bucket.chunks - len(rows)))
        return slots, table

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
        return tiles + array("q", bytes(32 * (most_tiles(self.bucket) - used))) + array("q", [used, 0])

    def _logits(self, firsts: Sequence[int], counts: Sequence[int], samples: Sequence[int]) -> array[int]:
        """The places that want logits, in order, and 0 for those that there may be more."""
        wanted = array("q")
        for first, count, own in zip(firsts, counts, samples, strict=True):
            wanted.extend(range(first + count - own, first + count))
        return wanted + array("q", bytes(8 * (self.bucket.logits - len(wanted))))


def table_of(pages: Sequence[int | None]) -> array[int]:
    """A page table of whole numbers alone: a page that is gone is -1."""
    return array("q", [-1 if page is None else page for page in pages])


def _check(seen: array[int], position: int) -> None:
    if -1 in seen:
        raise ValueError(f"a page that position {position} sees is gone")
