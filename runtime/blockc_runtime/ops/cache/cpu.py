"""Keys and values of the first positions replaced, on any device.

In: what was computed, and for each bank its keys and values and who uses them. Out: what attention caches and reads.
Invariant: equals `reference.py`; where no token stands at such a position both are handed on as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from blockc_runtime.ops.sides import SideSet


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedKv:
    """One bank at one cache. By slot ``[n, K, D]``, with an n of each fine-tune's own."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


def cached(k: Tensor, v: Tensor, sides: SideSet) -> tuple[Tensor, Tensor]:
    """``k`` and ``v [1,K,T,D]``, which are left as they are."""
    found = [
        (row, side.keys[row.slot], side.values[row.slot])
        for side, batch in sides
        for row in batch.rows
        if row.position < len(side.keys[row.slot])
    ]
    if not found:
        return k, v
    k, v = k.clone(), v.clone()
    for row, keys, values in found:
        stop = min(row.position + row.count, len(keys))
        span = slice(row.first, row.first + stop - row.position)
        k[0, :, span] = keys[row.position : stop].transpose(0, 1)
        v[0, :, span] = values[row.position : stop].transpose(0, 1)
    return k, v
