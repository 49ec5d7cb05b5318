"""Rows of a launch -> the tensors that attention reads, made once a launch and KV group for all layers of the group.

In: the rows in token order, those of one token first. Out: a :class:`KvBatch`.
Invariant: every slot it names belongs to the row that reads it or is masked out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from blockc_runtime.ops.attention.rows import KvRow
from blockc_runtime.ops.transfer import moved, on_device

# A bucket of fewer pages than this is not worth a launch of its own.
_SMALL_PAGES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeBucket:
    """Rows of one token whose contexts are of similar length, padded to the longest.

    ``pages`` is ``[rows * P]`` (padding repeats a page of the row), ``mask`` ``[rows, 1, 1, P * page_tokens]``, added
    to the scores. ``index`` says where the rows stand on the token axis; None: they are its first ``rows`` tokens.
    """

    rows: int
    index: Tensor | None
    pages: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive new tokens of one row, at ``first .. first + count`` on the token axis.

    ``pages`` (``[P]``) is None where the chunk sees nothing but itself. ``mask`` ``[count, keys]`` is added to the
    scores; None: plain causal.
    """

    first: int
    count: int
    pages: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedRows:
    """Rows of one token each, for a kernel that reads pages where they lie.

    ``rows`` int32 ``[n, 4]``: its place on the token axis, its first page in ``pages``, and from there the first and
    the last position that it sees. ``longest``: the most positions that a row sees.
    """

    rows: Tensor
    pages: Tensor
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedChunks:
    """Rows of several tokens each, for a kernel that reads pages where they lie.

    ``rows`` int32 ``[n, 4]``: its place on the token axis, its tokens, its first page in ``pages``, and the position of
    its first token, counted from there.
    """

    rows: Tensor
    pages: Tensor

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticBatch:
    """Rows by tensors on the device alone: what is in them may change from step to step.

    ``slots [T]`` and ``window`` as those of :class:`KvBatch`; ``chunked``: the most tokens of ``chunks_on_device``, of
    which rows may have none.
    """

    slots: Tensor
    window: int | None
    on_device: PagedRows
    chunks_on_device: PagedChunks
    chunked: int

    @property
    def singles(self) -> int:
        """Rows of one token."""
        return len(self.on_device.rows)

    @property
    def has_chunks(self) -> bool:
        """Whether there may be rows of several tokens."""
        return self.chunked > 0

    def chunk_tiles(self, tokens: int) -> Tensor | None:
        """None: kernels find them."""
        return None

    def most_tiles(self, tokens: int) -> int:
        """Tiles of so many tokens that there may be."""
        return self.chunked // tokens + self.chunks_on_device.count


@dataclass(frozen=True, kw_only=True)
class KvBatch:
    """All rows of a launch in one KV group, of which the first ``singles`` are of one token.

    ``slots [T]``: where each token's keys and values are written. Each device makes what its kernels read: pages, or
    ``buckets``.
    """

    rows: tuple[KvRow, ...]
    singles: int
    page_tokens: int
    window: int | None
    dtype: torch.dtype
    device: torch.device
    slots: Tensor
    _tiles: dict[int, Tensor] = field(default_factory=dict, init=False)

    @cached_property
    def buckets(self) -> tuple[DecodeBucket, ...]:
        """Rows of one token, padded to the longest of their bucket."""
        rows = self.rows[: self.singles]
        return tuple(
            _bucket_to(
                _bucket(rows, members, page_tokens=self.page_tokens, window=self.window, dtype=self.dtype), self.device
            )
            for members in _similar([_visible_pages(row, self.page_tokens, self.window) for row in rows])
        )

    @cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        """Rows of several tokens."""
        rows = self.rows[self.singles :]
        return tuple(
            _chunk_to(_chunk(row, page_tokens=self.page_tokens, window=self.window, dtype=self.dtype), self.device)
            for row in rows
        )

    @cached_property
    def paged(self) -> PagedRows:
        """Rows of one token, as they lie."""
        rows: list[int] = []
        pages: list[int | None] = []
        longest = 0
        for row in self.rows[: self.singles]:
            lowest = row.first_visible(self.window)
            base = lowest // self.page_tokens
            before = base * self.page_tokens
            rows += (row.first, len(pages), lowest - before, row.start - before)
            pages += row.pages[base : row.start // self.page_tokens + 1]
            longest = max(longest, row.start + 1 - lowest)
        return PagedRows(
            rows=torch.tensor(rows, dtype=torch.int32).view(-1, 4),
            pages=torch.tensor(pages, dtype=torch.int32),
            longest=longest,
        )

    @cached_property
    def paged_chunks(self) -> PagedChunks:
        """Rows of several tokens, as they lie."""
        rows: list[int] = []
        pages: list[int | None] = []
        for row in self.rows[self.singles :]:
            base = row.first_visible(self.window) // self.page_tokens
            rows += (row.first, row.count, len(pages), row.start - base * self.page_tokens)
            pages += row.pages[base : (row.start + row.count - 1) // self.page_tokens + 1]
        return PagedChunks(
            rows=torch.tensor(rows, dtype=torch.int32).view(-1, 4), pages=torch.tensor(pages, dtype=torch.int32)
        )

    @cached_property
    def chunks_on_device(self) -> PagedChunks:
        """The same where attention runs."""
        own = self.paged_chunks
        return PagedChunks(rows=moved(own.rows, self.device), pages=moved(own.pages, self.device))

    @property
    def has_chunks(self) -> bool:
        """Whether there are rows of several tokens."""
        return self.singles < len(self.rows)

    def most_tiles(self, tokens: int) -> int:
        """Tiles of so many tokens."""
        return len(self.chunk_tiles(tokens))

    def chunk_tiles(self, tokens: int) -> Tensor:
        """Rows of several tokens, ``tokens`` at a time: int32 ``[n, 2]`` on the device, which row and where in it.

        Those that see the most come first: what is left for the end is short.
        """
        if tokens not in self._tiles:
            rows = self.rows[self.singles :]
            tiles = [(i, begin) for i, row in enumerate(rows) for begin in range(0, row.count, tokens)]
            tiles.sort(key=lambda tile: -(rows[tile[0]].start + tile[1]))
            self._tiles[tokens] = moved(torch.tensor(tiles, dtype=torch.int32).view(-1, 2), self.device)
        return self._tiles[tokens]

    @cached_property
    def on_device(self) -> PagedRows:
        """Rows of one token where attention runs."""
        own = self.paged
        return PagedRows(rows=moved(own.rows, self.device), pages=moved(own.pages, self.device), longest=own.longest)


def kv_batch(
    rows: Sequence[KvRow],
    *,
    page_tokens: int,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> KvBatch:
    """Rows of one token must come first. ``dtype`` is that of queries, keys and values."""
    slots: list[int] = []
    for row in rows:
        slots += row.slots(page_tokens)
    return KvBatch(
        rows=tuple(rows),
        singles=sum(row.count == 1 for row in rows),
        page_tokens=page_tokens,
        window=window,
        dtype=dtype,
        device=device,
        slots=on_device(slots, device),
    )


def _visible_pages(row: KvRow, page_tokens: int, window: int | None) -> int:
    first = row.first_visible(window) // page_tokens
    return (row.start + row.count - 1) // page_tokens + 1 - first


def _similar(page_counts: list[int]) -> list[list[int]]:
    """Indices of rows in buckets in which no row reads more than twice its pages."""
    buckets: list[list[int]] = []
    largest = 0
    for row in sorted(range(len(page_counts)), key=lambda row: -page_counts[row]):
        if not buckets or (2 * page_counts[row] < largest and largest > _SMALL_PAGES):
            buckets.append([])
            largest = page_counts[row]
        buckets[-1].append(row)
    return [sorted(bucket) for bucket in buckets]


def _bucket(
    rows: Sequence[KvRow],
    members: list[int],
    *,
    page_tokens: int,
    window: int | None,
    dtype: torch.dtype,
) -> DecodeBucket:
    longest = max(_visible_pages(rows[member], page_tokens, window) for member in members)
    pages: list[int | None] = []
    first_visible, last = [], []
    for member in members:
        row = rows[member]
        lowest = row.first_visible(window)
        base = lowest // page_tokens
        table = row.pages[base : row.start // page_tokens + 1]
        pages += table
        pages += table[-1:] * (longest - len(table))
        first_visible.append(lowest - base * page_tokens)
        last.append(row.start - base * page_tokens)
    key = torch.arange(longest * page_tokens)
    hidden = (key > torch.tensor(last)[:, None]) | (key < torch.tensor(first_visible)[:, None])
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
    return DecodeBucket(
        rows=len(members),
        index=None if len(members) == len(rows) else torch.tensor(members),
        pages=torch.tensor(pages),
        mask=mask[:, None, None],
    )


def _chunk(row: KvRow, *, page_tokens: int, window: int | None, dtype: torch.dtype) -> Chunk:
    if row.start == 0 and (window is None or row.count <= window):
        return Chunk(first=row.first, count=row.count, pages=None, mask=None)
    base = row.first_visible(window) // page_tokens if row.start else 0
    end = row.start + row.count
    query = torch.arange(row.start, end)[:, None]
    if row.start:
        table = row.pages[base : (end - 1) // page_tokens + 1]
        pages, key = (
            torch.tensor(table),
            torch.arange(len(table) * page_tokens) + base * page_tokens,
        )
    else:
        pages, key = None, torch.arange(row.count)
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
    return Chunk(first=row.first, count=row.count, pages=pages, mask=mask)


def _bucket_to(bucket: DecodeBucket, device: torch.device) -> DecodeBucket:
    return DecodeBucket(
        rows=bucket.rows,
        index=None if bucket.index is None else moved(bucket.index, device),
        pages=moved(bucket.pages, device),
        mask=moved(bucket.mask, device),
    )


def _chunk_to(chunk: Chunk, device: torch.device) -> Chunk:
    return Chunk(
        first=chunk.first,
        count=chunk.count,
        pages=None if chunk.pages is None else moved(chunk.pages, device),
        mask=None if chunk.mask is None else moved(chunk.mask, device),
    )
