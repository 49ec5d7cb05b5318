"""Changes of a whole matrix that are kept compressed: signs, integers by group, single values.

Decoded a slab of rows at a time while they are multiplied, so that no dense copy is ever held. The forms are those of
`blockc.ir.codecs`; a row of the slab is a row of the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Values of a slab: what stays in a core's cache beside the inputs.
_SLAB = 1 << 18


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
        for start, stop in _slabs(len(self.bits), self.columns):
            bits = unpacked(self.bits[start:stop], 1)[:, : self.columns].to(x.dtype)
            part = torch.mm(x, bits.t()).mul_(2).sub_(whole)
            y[:, start:stop].addcmul_(part, self.scale[start:stop])


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupIntChange:
    """``codes`` of ``bits`` bits, ``scale [out, in / group]``; ``index``: where two of each four values stand."""

    codes: Tensor
    scale: Tensor
    index: Tensor | None
    bits: int
    group: int

    @property
    def nbytes(self) -> int:
        """Bytes as it is kept."""
        return self.codes.nbytes + self.scale.nbytes + (0 if self.index is None else self.index.nbytes)

    def add_to(self, y: Tensor, x: Tensor) -> None:
        """``y [n, out] += x D^T``, ``x [n, in]``."""
        for start, stop in _slabs(len(self.codes), x.shape[1]):
            y[:, start:stop].add_(torch.mm(x, self._dense(start, stop, x.dtype).t()))

    def _dense(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        codes = unpacked(self.codes[start:stop], self.bits).to(dtype).sub_(2 ** (self.bits - 1))
        if self.index is not None:
            quads = codes.shape[1] // 2
            places = unpacked(self.index[start:stop], 2).view(-1, quads, 2).long()
            dense = codes.new_zeros(len(codes), quads, 4)
            codes = dense.scatter_(2, places, codes.view(-1, quads, 2)).flatten(1)
        scale = self.scale[start:stop].unsqueeze(2)
        return codes.view(len(codes), -1, self.group).mul_(scale).flatten(1)


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


def unpacked(data: Tensor, bits: int) -> Tensor:
    """``[rows, n]`` bytes -> ``[rows, n * 8 / bits]`` small numbers, the lowest bits first."""
    if bits == 8:
        return data
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device)
    return torch.bitwise_right_shift(data.unsqueeze(2), shifts).bitwise_and_(2**bits - 1).flatten(1)


def _slabs(rows: int, columns: int) -> list[tuple[int, int]]:
    height = max(1, _SLAB // max(1, columns))
    return [(start, min(rows, start + height)) for start in range(0, rows, height)]
