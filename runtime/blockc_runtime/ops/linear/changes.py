"""Changes of a whole matrix that are kept compressed: signs, integers by group, single values.

Decoded a slab of rows at a time while they are multiplied, so that no dense copy is ever held. The forms are those of
`blockc.ir.codecs`; a row of the slab is a row of the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blockc_runtime.ops.integers import IntegerMatrix, slabs, unpacked


@dataclass(frozen=True, slots=True, kw_only=True)
class SignChange:
    """``bits [out, ceil(in / 8)]`` U8, the first value in the lowest bit; ``scale [out]``; ``columns``: in."""

    bits: Tensor
    scale: Tensor
    columns: int

    @property
    def nbytes(self) -> int:
        """Bytes as it is kept."""
        return self.bits.nbytes + self.scale.nbytes

    def add_to(self, y: Tensor, x: Tensor) -> None:
        """``y [n, out] += x D^T``, ``x [n, in]``: twice the sum over set bits less the sum of all, times the scale."""
        whole = x.sum(1, keepdim=True)
        for start, stop in slabs(len(self.bits), self.columns):
            bits = unpacked(self.bits[start:stop], 1)[:, : self.columns].to(x.dtype)
            part = torch.mm(x, bits.t()).mul_(2).sub_(whole)
            y[:, start:stop].addcmul_(part, self.scale[start:stop])


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupIntChange:
    """A change of integers. ``index``: where two of each four values stand, if ``kept`` holds those alone."""

    kept: IntegerMatrix
    index: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes as it is kept."""
        return self.kept.nbytes + (0 if self.index is None else self.index.nbytes)

    def add_to(self, y: Tensor, x: Tensor) -> None:
        """``y [n, out] += x D^T``, ``x [n, in]``."""
        for start, stop in slabs(len(self.kept.codes), x.shape[1]):
            dense = self.kept.rows(start, stop).dense(x.dtype)
            if self.index is not None:
                dense = _spread(dense, unpacked(self.index[start:stop], 2))
            y[:, start:stop].add_(torch.mm(x, dense.t()))


def _spread(kept: Tensor, places: Tensor) -> Tensor:
    """``kept [n, in / 2]`` at ``places [n, in / 2]`` of each four columns -> ``[n, in]``."""
    rows, count = kept.shape
    dense = kept.new_zeros(rows, count // 2, 4)
    return dense.scatter_(2, places.view(rows, -1, 2).long(), kept.view(rows, -1, 2)).flatten(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseChange:
    """Single values: ``value [n]`` at ``row [n]`` and ``column [n]``."""

    row: Tensor
    column: Tensor
    value: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes as it is kept."""
        return self.row.nbytes + self.column.nbytes + self.value.nbytes

    def add_to(self, y: Tensor, x: Tensor) -> None:
        """``y [n, out] += x D^T``, ``x [n, in]``."""
        y.index_add_(1, self.row, x.index_select(1, self.column).mul_(self.value))
