"""A linear with the side of one fine-tune, one row at a time, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSide:
    """The terms of `blockc.ir.codecs` at a linear. ``rows``: (index, weight row); ``changes``: dense ``[out, in]``."""

    in_scale: Tensor | None = None
    rows: Sequence[tuple[int, Tensor]] = ()
    low_rank: Sequence[tuple[Tensor, Tensor, float]] = ()
    changes: Sequence[Tensor] = ()
    out_scale: Tensor | None = None
    bias: Tensor | None = None


def side_linear(x: Tensor, weight: Tensor, bias: Tensor | None, side: ReferenceSide) -> Tensor:
    """``s o (W' (t o x)) + sum_i D_i x + b``: ``x [in]``, ``weight [out, in]`` -> float32 ``[out]``."""
    value, matrix = x.float(), weight.float().clone()
    for index, row in side.rows:
        matrix[index] = row.float()
    out = matrix @ (value if side.in_scale is None else value * side.in_scale.float())
    whole = torch.zeros_like(out) if bias is None else bias.float()
    if side.out_scale is not None:
        out, whole = out * side.out_scale.float(), whole * side.out_scale.float()
    for a, b, scale in side.low_rank:
        out = out + scale * (b.float() @ (a.float() @ value))
    for change in side.changes:
        out = out + change.float() @ value
    return out + (whole if side.bias is None else side.bias.float())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x [T,in]``, ``weight [out,in]``, ``bias [out]`` -> float32 ``[T,out]``, one row at a time."""
    rows = [weight.float() @ row.float() for row in x]
    out = torch.stack(rows) if rows else x.new_zeros((0, weight.shape[0]), dtype=torch.float32)
    return out if bias is None else out + bias.float()
