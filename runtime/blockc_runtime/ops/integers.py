"""Matrices as integers with a scale for each group of a row: what `blockc.ir.QuantizedRef` means, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Values that are made dense at once: on CPU what stays in a core's cache (a quarter of it took half as long again),
# elsewhere a small part of the memory. Changes are decoded beside the inputs, and multiplied less often.
CPU_SLAB, _SLAB, _CHANGE_SLAB = 1 << 20, 1 << 24, 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerMatrix:
    """``(codes - 2^(bits-1)) * scale + shift``, ``[out, in]``, or ``[E, out, in]`` for experts.

    ``codes`` U8 ``[..., out, in * bits / 8]``, the first value in the lowest bits; ``scale`` and ``shift``
    ``[..., out, in / group]``.
    """

    codes: Tensor
    scale: Tensor
    shift: Tensor | None
    bits: int
    group: int

    @property
    def shape(self) -> torch.Size:
        """Of the matrix."""
        return torch.Size((*self.codes.shape[:-1], self.scale.shape[-1] * self.group))

    @property
    def nbytes(self) -> int:
        """Bytes as it is kept."""
        return self.codes.nbytes + self.scale.nbytes + (0 if self.shift is None else self.shift.nbytes)

    def rows(self, start: int, stop: int) -> IntegerMatrix:
        """Some of its rows, or experts."""
        span = slice(start, stop)
        shift = None if self.shift is None else self.shift[span]
        return replace(self, codes=self.codes[span], scale=self.scale[span], shift=shift)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """All of it, ``[..., out, in]``."""
        values = unpacked(self.codes, self.bits).to(dtype).sub_(1 << (self.bits - 1))
        grouped: Tensor = values.view(*self.scale.shape, self.group).mul_(self.scale.to(dtype).unsqueeze(-1))
        if self.shift is not None:
            grouped.add_(self.shift.to(dtype).unsqueeze(-1))
        return grouped.flatten(-2)

    def __getitem__(self, expert: int) -> Tensor:
        """One expert's matrix, dense."""
        return self.rows(expert, expert + 1).dense(self.scale.dtype)[0]

    def slabs(self) -> list[tuple[int, int]]:
        """Rows ``start .. stop`` that may be dense at once."""
        most = CPU_SLAB if self.codes.device.type == "cpu" else _SLAB
        return slabs(len(self.codes), self.shape[-1], most)


def joined(parts: Sequence[IntegerMatrix]) -> IntegerMatrix:
    """One above the other, copied. Bits, groups and whether there is a shift are those of the first."""
    shifts = [part.shift for part in parts if part.shift is not None]
    return replace(
        parts[0],
        codes=torch.cat([part.codes for part in parts]),
        scale=torch.cat([part.scale for part in parts]),
        shift=torch.cat(shifts) if shifts else None,
    )


def unpacked(data: Tensor, bits: int) -> Tensor:
    """``[..., n]`` bytes -> ``[..., n * 8 / bits]`` small numbers, the lowest bits first."""
    if bits == 8:
        return data
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device)
    return torch.bitwise_right_shift(data.unsqueeze(-1), shifts).bitwise_and_(2**bits - 1).flatten(-2)


def slabs(rows: int, columns: int, most: int = _CHANGE_SLAB) -> list[tuple[int, int]]:
    """Rows ``start .. stop`` of a matrix, ``most`` values at a time."""
    height = max(1, most // max(1, columns))
    return [(start, min(rows, start + height)) for start in range(0, rows, height)]
