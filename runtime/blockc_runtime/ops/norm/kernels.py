"""Triton kernels of norm and gate. On a CPU they run in Triton's interpreter (``TRITON_INTERPRET=1``)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scaled_rows(x, x_row, weight, out, size, eps, BLOCK: tl.constexpr) -> None:
    """``out [n, size] = x / sqrt(mean(x^2) + eps) * weight``, a row a program. Rounds once."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    held = at < size
    value = tl.load(x + row * x_row + at, mask=held, other=0.0).to(tl.float32)
    scale = tl.load(weight + at, mask=held, other=0.0).to(tl.float32)
    result = value * tl.rsqrt(tl.sum(value * value, 0) / size + eps) * scale
    tl.store(out + row * size + at, result.to(out.dtype.element_ty), mask=held)


@triton.jit
def gated_rows(
    gate, up, out, gate_row, up_row, size, IS_SILU: tl.constexpr, BLOCK: tl.constexpr
) -> None:  # fmt: skip
    """``out [n, size] = activation(gate) * up``, ``BLOCK`` columns of a row a program. Rounds once."""
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    held = at < size
    value = tl.load(gate + row * gate_row + at, mask=held, other=0.0).to(tl.float32)
    other = tl.load(up + row * up_row + at, mask=held, other=0.0).to(tl.float32)
    if IS_SILU:
        active = value * tl.sigmoid(value)
    else:  # x (1 + tanh(u)) / 2 is x sigmoid(2u)
        active = value * tl.sigmoid(1.5957691216057308 * (value + 0.044715 * value * value * value))
    tl.store(out + row * size + at, (active * other).to(out.dtype.element_ty), mask=held)
