"""What recorded decode steps take on CUDA beside a step that is launched op by op.

In: rows of a step, KV groups, structures. Out: bytes. Placement counts by it and the runtime's buffers have these sizes
(`runtime/.../executor/graphs.py`, `buckets.py`). Invariant: pure functions of plain data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from blockc.ir.infer import value_types
from blockc.ir.layout import pass_bytes
from blockc.ir.structure import Structure, ValueType
from blockc.ir.tensor import DTYPE_BYTES

# Rows beyond which launches cost little beside what they launch: they are not recorded.
MOST_ROWS: Final = 256
# Of a number in the tables that a step's kernels read.
NUMBER_BYTES: Final = 8


def bucket_of(rows: int) -> int:
    """The size that ``rows`` are filled up to: 1, 2, 4, 8, 16, then by 16, from 128 on by 32, from 256 on by 64."""
    if rows <= 16:
        return 1 << max(0, rows - 1).bit_length()
    step = 16 if rows <= 128 else 32 if rows <= 256 else 64
    return -(-rows // step) * step


def largest_bucket(max_rows: int) -> int:
    """Of steps of up to ``max_rows`` rows."""
    return bucket_of(min(max_rows, MOST_ROWS))


def row_pages(*, positions: int, page_tokens: int, window: int | None) -> int:
    """The most pages of a KV group that a row sees: a window may begin and end within a page."""
    whole = -(-positions // page_tokens)
    return whole if window is None else min(whole, -(-window // page_tokens) + 1)


def table_numbers(bucket: int, pages: Sequence[int], segments: int) -> int:
    """Tokens and positions; slots, rows and each row's ``pages`` of each KV group; each segment's tiles, counted."""
    fixed = (2 + 5 * len(pages) + 4 * segments) * bucket
    return fixed + segments + sum(bucket * count + 1 for count in pages)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class RowBuffer:
    """Memory that all graphs have in common: values of ``width`` for each row, which go in or come out."""

    goes_in: bool
    width: int
    dtype: str

    def nbytes(self, bucket: int) -> int:
        """Bytes."""
        return bucket * self.width * DTYPE_BYTES[self.dtype]


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


def recorded_bytes(structures: Sequence[Structure], *, max_rows: int, pages: Sequence[int], segments: int) -> int:
    """All of it on one device: `shared_bytes`, and the memory that graphs compute in.

    ``structures``: of blocks, without preludes; ``pages``: of each KV group, those of a row. Graphs share a pool, since
    no two run at once: what the hungriest block takes of it is what it keeps.
    """
    if not structures:
        return 0
    bucket = largest_bucket(max_rows)
    return shared_bytes(structures, max_rows=max_rows, pages=pages, segments=segments) + max(
        pass_bytes(structure, tokens=bucket, rows=bucket) for structure in structures
    )


def shared_bytes(structures: Iterable[Structure], *, max_rows: int, pages: Sequence[int], segments: int) -> int:
    """Tables, and what graphs read and yield."""
    bucket = largest_bucket(max_rows)
    return NUMBER_BYTES * table_numbers(bucket, pages, segments) + sum(
        buffer.nbytes(bucket) for buffer in row_buffers(structures)
    )


def _buffer(type_: ValueType, *, goes_in: bool) -> RowBuffer:
    width = math.prod(dim for dim in type_.shape if isinstance(dim, int))
    return RowBuffer(goes_in=goes_in, width=width, dtype=type_.dtype)
