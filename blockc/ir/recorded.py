"""What recorded steps take on CUDA beside a step that is launched op by op.

In: rows and tokens of a step, KV groups, structures. Out: bytes. Placement counts by it and the runtime's buffers have
these sizes (`runtime/.../executor/graphs.py`, `buckets.py`). Invariant: pure functions of plain data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from blockc.ir.infer import value_types
from blockc.ir.layout import DRAW_BYTES, pass_bytes
from blockc.ir.structure import Structure, ValueType
from blockc.ir.tensor import DTYPE_BYTES

# Rows, and tokens of prompts, beyond which launches cost little beside what they launch: they are not recorded.
MOST_ROWS: Final = 256
# Sizes that tokens of prompts are filled up to, and rows of one token beside them.
_CHUNKED: Final = (64, 128, 256, 384, 512)
_BESIDE: Final = (0, 16, 64, 128, 256)
# Prompts, or parts of some, that are read in one step.
MOST_CHUNKS: Final = 32
# Places of a tile of the low-rank kernels where rows are of several tokens.
TILE_PLACES: Final = 64
# Logits that are drawn from together on a device: a draw that the host asks for waits for it some ten times.
DRAWN_AT_ONCE: Final = 1 << 22
# Of a number in the tables that a step's kernels read.
NUMBER_BYTES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Bucket:
    """What a step is filled up to: ``singles`` rows of one token, and ``chunked`` tokens of rows of several."""

    singles: int
    chunked: int = 0

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.singles + self.chunked

    @property
    def chunks(self) -> int:
        """Rows of several tokens."""
        return MOST_CHUNKS if self.chunked else 0

    @property
    def logits(self) -> int:
        """Rows that may want logits."""
        return self.singles + self.chunks


def bucket_of(rows: int) -> int:
    """The size that ``rows`` of one token alone are filled up to: 1, 2, 4, 8, 16, then by 16, 32, and 64."""
    if rows <= 16:
        return 1 << max(0, rows - 1).bit_length()
    step = 16 if rows <= 128 else 32 if rows <= 256 else 64
    return -(-rows // step) * step


def bucket_beside(singles: int, chunks: Sequence[int]) -> Bucket | None:
    """Of rows of one token beside rows of so many tokens each; None: they are not recorded."""
    beside, chunked = _filled(singles, _BESIDE), _filled(sum(chunks), _CHUNKED)
    if beside is None or chunked is None or len(chunks) > MOST_CHUNKS:
        return None
    return Bucket(singles=beside, chunked=chunked)


def buckets_of(*, max_rows: int, max_tokens: int) -> tuple[Bucket, ...]:
    """The largest of steps of up to ``max_rows`` rows and ``max_tokens`` tokens: without prompts, and with some."""
    alone = Bucket(singles=bucket_of(min(max_rows, MOST_ROWS)))
    if max_tokens < 2:
        return (alone,)
    beside, chunked = _filled(max_rows - 1, _BESIDE), _filled(max_tokens, _CHUNKED)
    most = Bucket(
        singles=_BESIDE[-1] if beside is None else beside, chunked=_CHUNKED[-1] if chunked is None else chunked
    )
    return alone, most


def _filled(count: int, sizes: Sequence[int]) -> int | None:
    """The least size that holds ``count``."""
    return next((size for size in sizes if size >= count), None)


@dataclass(frozen=True, kw_only=True)
class Paged:
    """Rows of one KV group: ``positions``, the most that a row may have."""

    page_tokens: int
    window: int | None
    positions: int

    def pages(self, tokens: int = 1) -> int:
        """The most pages that a row of so many tokens sees: a window may begin and end within a page."""
        whole = -(-self.positions // self.page_tokens)
        if self.window is None:
            return whole
        return min(whole, -(-(self.window + tokens - 1) // self.page_tokens) + 1)


def table_numbers(bucket: Bucket, groups: Sequence[Paged], segments: int) -> int:
    """Tokens and positions; slots, rows, chunks and pages of each KV group; segments' tiles, counted.

    With prompts the places of logits, too, and segments' tiles among those.
    """
    tiles = segments * tile_numbers(bucket)
    fixed = 2 * bucket.tokens + tiles + (bucket.logits + tiles if bucket.chunked else 0)
    return fixed + sum(
        bucket.tokens + 4 * bucket.logits + 1 + bucket.singles * own.pages() + bucket.chunks * own.pages(bucket.chunked)
        for own in groups
    )


def most_tiles(bucket: Bucket) -> int:
    """Tiles that the tokens which use fine-tunes can be in."""
    return bucket.logits + bucket.chunked // TILE_PLACES


def tile_numbers(bucket: Bucket) -> int:
    """Numbers of a segment's tiles, with how many are used. Two are of 16 bytes: all lie as the first do."""
    return 4 * most_tiles(bucket) + 2


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class RowBuffer:
    """Memory that all graphs have in common: values of ``width``, which go in or come out.

    ``selects``: for each row that wants logits, and else for each token.
    """

    goes_in: bool
    selects: bool
    width: int
    dtype: str

    def nbytes(self, buckets: Iterable[Bucket]) -> int:
        """Bytes, for the largest."""
        rows = max(bucket.logits if self.selects else bucket.tokens for bucket in buckets)
        return rows * self.width * DTYPE_BYTES[self.dtype]


def row_buffers(structures: Iterable[Structure]) -> frozenset[RowBuffer]:
    """Hidden states before and behind blocks, and logits: one buffer of each width and dtype, whoever's they are."""
    found = set()
    for structure in structures:
        types = value_types(structure)
        given = [type_ for name, type_ in structure.inputs if name not in ("tokens", "positions")]
        yielded = [type_ for name in structure.returns if (type_ := types[name]) is not None]
        found |= {_buffer(type_, goes_in=True) for type_ in given} | {
            _buffer(type_, goes_in=False) for type_ in yielded
        }
    return frozenset(found)


def recorded_bytes(
    structures: Sequence[Structure],
    *,
    max_rows: int,
    max_tokens: int,
    groups: Sequence[Paged],
    segments: int,
) -> int:
    """All of it on one device: `shared_bytes`, the memory that graphs compute in, and that in which tokens are drawn.

    ``structures``: of blocks, without preludes. Graphs share a pool, since no two run at once: what the hungriest block
    takes of it is what it keeps.
    """
    if not structures:
        return 0
    buckets = buckets_of(max_rows=max_rows, max_tokens=max_tokens)
    computed = max(
        pass_bytes(structure, tokens=bucket.tokens, rows=bucket.logits)
        for structure in structures
        for bucket in buckets
    )
    logits = max((own.width for own in row_buffers(structures) if own.selects), default=0) * max_rows
    drawn = min(logits, DRAWN_AT_ONCE) * DRAW_BYTES
    return shared_bytes(structures, buckets=buckets, groups=groups, segments=segments) + computed + drawn


def shared_bytes(
    structures: Iterable[Structure],
    *,
    buckets: Sequence[Bucket],
    groups: Sequence[Paged],
    segments: int,
) -> int:
    """Tables, and what graphs read and yield."""
    numbers = max(table_numbers(bucket, groups, segments) for bucket in buckets)
    return NUMBER_BYTES * numbers + sum(buffer.nbytes(buckets) for buffer in row_buffers(structures))


def _buffer(type_: ValueType, *, goes_in: bool) -> RowBuffer:
    width = math.prod(dim for dim in type_.shape if isinstance(dim, int))
    return RowBuffer(goes_in=goes_in, selects="R" in type_.shape, width=width, dtype=type_.dtype)
