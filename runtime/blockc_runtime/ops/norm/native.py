"""Norm, gated activation and rotary embedding by blockc's own kernels; torch's where the operands are others.

In and out: as in `cpu.py`. Invariant: equals it up to rounding, which is done once.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from blockc_runtime.native.library import DTYPES, loaded
from blockc_runtime.native.queue import at_once, call
from blockc_runtime.ops.norm import cpu
from blockc_runtime.ops.norm.cpu import row_stride


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x [..., hidden]``, ``weight [hidden]``."""
    dtype = DTYPES.get(x.dtype)
    if dtype is None or weight.dtype != x.dtype or weight.ndim != 1 or not weight.is_contiguous():
        with at_once():
            return cpu.rms_norm(x, weight, eps)
    size = x.shape[-1]
    stride = row_stride(x)
    if stride is None:
        with at_once():
            x, stride = x.contiguous(), size
    out = x.new_empty(x.shape)
    call(
        "rms_norm", (x, weight, out), dtype,
        x.data_ptr(), stride, weight.data_ptr(), out.data_ptr(), x.numel() // size, size, eps,
    )  # fmt: skip
    return out


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """``activation(gate) * up``, both ``[..., inner]``."""
    dtype = DTYPES.get(gate.dtype)
    strides = row_stride(gate), row_stride(up)
    if dtype is None or up.dtype != gate.dtype or up.shape != gate.shape or None in strides:
        with at_once():
            return cpu.gated(gate, up, activation)
    out = gate.new_empty(gate.shape)
    size = gate.shape[-1]
    call(
        "gated", (gate, up, out), dtype,
        gate.data_ptr(), strides[0], up.data_ptr(), strides[1], out.data_ptr(),
        gate.numel() // size, size, cpu.GATES.index(activation),
    )  # fmt: skip
    return out


def rotary(x: Tensor, cos: Tensor, sin: Tensor, half: int) -> Tensor:
    """``x [1, heads, T, 2 * half]``; ``cos`` and ``sin`` broadcast against it."""
    dtype = DTYPES.get(x.dtype)
    if dtype is None or not _fits(x, cos, sin, half):
        return cpu.rotary(x, cos, sin, half)
    _, heads, tokens, size = x.shape
    out = x.new_empty((1, tokens, heads, size))
    loaded().rotary(
        dtype,
        x.data_ptr(), x.stride(2), x.stride(1), cos.data_ptr(), sin.data_ptr(), cos.stride(2),
        out.data_ptr(), tokens, heads, half,
    )  # fmt: skip
    return out.transpose(1, 2)


def angles_fit(x: Tensor, size: int, angles: Sequence[Tensor]) -> bool:
    """Whether kernels rotate ``x [1, T, ...]`` by these cos and sin, or there are none."""
    if not angles:
        return True
    cos, sin = angles
    return (
        cos.shape == sin.shape == (1, 1, x.shape[1], size) and cos.dtype == sin.dtype == x.dtype
        and cos.stride() == sin.stride() and cos.stride(3) == 1
    )  # fmt: skip


def _fits(x: Tensor, cos: Tensor, sin: Tensor, half: int) -> bool:
    turned = x.ndim == 4 and x.shape[0] == 1 and x.shape[3] == 2 * half and x.stride(3) == 1
    return turned and angles_fit(x.transpose(1, 2), 2 * half, (cos, sin))
