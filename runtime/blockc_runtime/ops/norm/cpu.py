"""Norm, gate and rotary embedding in few launches: at decode sizes each costs its overhead, not its arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

GATES = ("silu", "gelu_tanh")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x [..., hidden]``, ``weight [hidden]``. Rounds once, after the weight, where the definition rounds twice.

    A ``weight`` of more dimensions differs from place to place.
    """
    if weight.ndim == 1:
        return torch.rms_norm(x, weight.shape, weight, eps)
    return torch.rms_norm(x, x.shape[-1:], None, eps) * weight


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """``activation(gate) * up``, ``activation`` one of `GATES`."""
    return (silu(gate) if activation == "silu" else gelu(gate, approximate="tanh")) * up


def rotary(x: Tensor, cos: Tensor, sin: Tensor, half: int) -> Tensor:
    """``x [..., 2 * half]``; ``cos`` and ``sin`` broadcast against it. 3 launches instead of 7."""
    out = x * cos
    first, second = x.split_with_sizes((half, x.shape[-1] - half), -1)
    sin_first, sin_second = sin.chunk(2, -1)
    out_first, out_second = out.chunk(2, -1)
    out_first.addcmul_(second, sin_first, value=-1)
    out_second.addcmul_(first, sin_second)
    return out


def row_stride(x: Tensor) -> int | None:
    """The distance of rows, if all that is before the last axis is rows at one distance."""
    if x.is_contiguous():
        return x.shape[-1]  # strides of axes of length one say nothing
    return x.stride(-2) if x.stride(-1) == 1 and x.shape[:-2].numel() == 1 else None
