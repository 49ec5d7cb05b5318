"""Norm and gated activation on CUDA by kernels of blockc's own; torch's where the operands are others.

In and out: as in `cpu.py`. torch's norm takes 6 us for few rows where 2 do, and its gate two launches that read the
halves of joined matrices one value at a time. Invariant: equals it up to rounding, which is done once.
"""

from __future__ import annotations

import triton
from torch import Tensor

from blockc_runtime.ops.norm import cpu
from blockc_runtime.ops.norm.cpu import row_stride
from blockc_runtime.ops.norm.kernels import gated_rows, scaled_rows

# Values of a row that a program holds: of a norm, whose rows are whole, at most; of a gate.
_LONGEST, _BLOCK = 1 << 15, 1024


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x [..., hidden]``, ``weight [hidden]``."""
    size, stride = x.shape[-1], row_stride(x)
    if weight.dtype != x.dtype or weight.ndim != 1 or not weight.is_contiguous() or stride is None or size > _LONGEST:
        return cpu.rms_norm(x, weight, eps)
    out = x.new_empty(x.shape)
    block = triton.next_power_of_2(size)
    if rows := x.numel() // size:
        scaled_rows[(rows,)](x, stride, weight, out, size, float(eps), BLOCK=block, num_warps=8 if block > 2048 else 4)
    return out


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """``activation(gate) * up``, both ``[..., inner]``."""
    size, strides = gate.shape[-1], (row_stride(gate), row_stride(up))
    if up.dtype != gate.dtype or up.shape != gate.shape or None in strides:
        return cpu.gated(gate, up, activation)
    out = gate.new_empty(gate.shape)
    if rows := gate.numel() // size:
        gated_rows[(rows, triton.cdiv(size, _BLOCK))](
            gate, up, out, *strides, size, IS_SILU=activation == "silu", BLOCK=_BLOCK
        )
    return out
