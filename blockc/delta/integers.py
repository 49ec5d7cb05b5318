"""Small integers in bytes, and matrices as integers with a scale for each group of a row.

In: float32 matrices. Out: bytes, the first value in the lowest bits, and scales. Invariant: what is decoded is what the
runtime multiplies by; a scale is rounded to the dtype that it is kept in before anything is divided by it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Of the largest value of a group: what is cut off loses less than finer steps gain, at 4 bits (AWQ, arXiv 2306.00978,
# searches for it too).
_CLIPS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
# Values that are worked on at once.
_SLAB = 1 << 22


def quantize(value: Tensor, *, bits: int, group: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``value [n, columns]`` -> codes U8 ``[n, columns * bits / 8]``, scales ``[n, columns / group]`` in ``dtype``.

    Symmetric: the value of largest size is the lowest integer, whatever its sign, so that no step is lost; at 4 bits
    the clip of each group with the least squared error.
    """
    codes, scales = [], []
    rows = max(1, _SLAB // value.shape[1])
    for start in range(0, len(value), rows):
        slab = value[start : start + rows]
        grouped = slab.float().view(len(slab), -1, group)
        found, scale = _nearest(grouped, bits, dtype)
        codes.append(packed(found.flatten(1), bits))
        scales.append(scale)
    return torch.cat(codes), torch.cat(scales)


def dequantized(codes: Tensor, scale: Tensor, shift: Tensor | None, *, bits: int, group: int) -> Tensor:
    """Float32 ``[n, columns]``."""
    values: Tensor = unpacked(codes, bits).float().sub_(1 << (bits - 1)).view(len(codes), -1, group)
    values *= scale.float().unsqueeze(2)
    if shift is not None:
        values += shift.float().unsqueeze(2)
    return values.flatten(1)


def _nearest(value: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``value [n, groups, group]`` -> codes of that shape, scales ``[n, groups]``."""
    peak = value.gather(2, value.abs().argmax(2, keepdim=True))
    best = _at(value, peak, bits, dtype, 1.0)
    for clip in _CLIPS if bits < 8 else ():
        found = _at(value, peak, bits, dtype, clip)
        better = found[0] < best[0]
        best = (
            torch.where(better, found[0], best[0]),
            torch.where(better, found[1], best[1]),
            torch.where(better, found[2], best[2]),
        )
    return best[1].add_(1 << (bits - 1)).to(torch.uint8), best[2].squeeze(2).to(dtype)


def _at(value: Tensor, peak: Tensor, bits: int, dtype: torch.dtype, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    """Squared error ``[n, groups, 1]``, codes around zero ``[n, groups, group]``, scales ``[n, groups, 1]``."""
    half = 1 << (bits - 1)
    scale = (peak * (-clip / half)).to(dtype).float()
    codes = (value / torch.where(scale == 0, 1, scale)).round_().clamp_(-half, half - 1)
    return (codes * scale).sub_(value).square_().sum(2, keepdim=True), codes, scale


def packed(values: Tensor, bits: int) -> Tensor:
    """``[rows, n]`` of small numbers -> bytes ``[rows, ceil(n * bits / 8)]``, the first in the lowest bits."""
    each = 8 // bits
    rows, count = values.shape
    padded = torch.nn.functional.pad(values, (0, -count % each)).view(rows, math.ceil(count / each), each)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    joined: Tensor = torch.bitwise_left_shift(padded, shifts).sum(2)
    return joined.to(torch.uint8)


def unpacked(data: Tensor, bits: int) -> Tensor:
    """Bytes ``[rows, n]`` -> ``[rows, n * 8 / bits]`` small numbers."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device)
    numbers: Tensor = torch.bitwise_right_shift(data.unsqueeze(2), shifts).bitwise_and_(2**bits - 1)
    return numbers.flatten(1)
