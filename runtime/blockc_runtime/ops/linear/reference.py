"""``y = W x + b`` with the sides of many fine-tunes, one row at a time, in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def side_linear(
    y: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    rank: Sequence[int],
    slot: Sequence[int],
    in_scale: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_bias: Tensor | None = None,
) -> Tensor:
    """``out_scale * (y + B A (in_scale * x)) + out_bias`` for rows with a slot, ``y`` for rows with slot -1.

    ``y [T,out]`` is ``W (in_scale * x)`` without bias, ``x [T,in]``; ``a [N,r,in]``, ``b [N,out,r]`` (scale folded
    in) of which slot ``n`` uses the first ``rank[n]`` ranks; ``in_scale [N,in]``, ``out_scale`` and
    ``out_bias [N,out]``. Returns float32.
    """
    out = y.float().clone()
    for row, adapter in enumerate(slot):
        if adapter < 0:
            continue
        value = x[row].float()
        if in_scale is not None:
            value = value * in_scale[adapter].float()
        inner = a[adapter, : rank[adapter]].float() @ value
        out[row] += b[adapter, :, : rank[adapter]].float() @ inner
        if out_scale is not None:
            out[row] *= out_scale[adapter].float()
        if out_bias is not None:
            out[row] += out_bias[adapter].float()
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x [T,in]``, ``weight [out,in]``, ``bias [out]`` -> float32 ``[T,out]``, one row at a time."""
    rows = [weight.float() @ row.float() for row in x]
    out = torch.stack(rows) if rows else x.new_zeros((0, weight.shape[0]), dtype=torch.float32)
    return out if bias is None else out + bias.float()
