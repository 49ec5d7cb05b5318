"""Linears on matrices of integers on CUDA.

Few rows are multiplied by the integers themselves, in one Triton kernel that reads every byte of the matrix once: the
scale of a group is applied to the sum over the group. For many rows the matrix is made dense, a slab at a time, for
the library's own multiplication.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from blockc_runtime.ops.integers import IntegerMatrix
from blockc_runtime.ops.linear.kernels import integer_product

# Rows up to which the kernel is used; tensor cores take no fewer than the smallest tile.
FEW_ROWS, _SMALLEST_TILE = 64, 16
# Columns at once: a divisor of the group.
_MOST_COLUMNS, _LEAST_COLUMNS = 128, 32
OUTPUTS, WARPS = 32, 4
# Programs that keep a large device busy; the columns are split among them where the outputs are too few.
_PROGRAMS = 512


class CudaProduct:
    """``x [n, in]`` -> ``[n, out]``."""

    def __init__(self, matrix: IntegerMatrix) -> None:
        self.matrix, self.nbytes = matrix, matrix.nbytes
        self.columns = kernel_columns(matrix)

    def __call__(self, x: Tensor) -> Tensor:
        """Float32 sums, rounded once."""
        if self.columns is not None and 0 < len(x) <= FEW_ROWS:
            return product(x, self.matrix, self.columns)
        y = x.new_empty(len(x), self.matrix.shape[0])
        for start, stop in self.matrix.slabs():
            y[:, start:stop] = torch.mm(x, self.matrix.rows(start, stop).dense(x.dtype).t())
        return y


def kernel_columns(matrix: IntegerMatrix) -> int | None:
    """How many columns the kernel takes at once; None where groups are too small for it."""
    columns = _MOST_COLUMNS
    while matrix.group % columns:
        columns //= 2
    return columns if columns >= _LEAST_COLUMNS else None


def product(x: Tensor, matrix: IntegerMatrix, columns: int, *, outputs: int = OUTPUTS, warps: int = WARPS) -> Tensor:
    """``x [n, in]`` -> ``[n, out]`` by the kernel."""
    x = x.contiguous()
    rows, width = x.shape
    outs = matrix.shape[0]
    tile = max(_SMALLEST_TILE, triton.next_power_of_2(rows))
    blocks = triton.cdiv(outs, outputs)
    steps = width // columns
    splits = max(1, min(_PROGRAMS // blocks, steps // 4))
    steps_each = triton.cdiv(steps, splits)
    splits = triton.cdiv(steps, steps_each)
    parts = torch.empty((splits, rows, outs), dtype=torch.float32, device=x.device)
    shift = matrix.scale if matrix.shift is None else matrix.shift
    integer_product[(blocks, splits)](
        x, matrix.codes, matrix.scale, shift, parts, rows, outs, width, width // matrix.group, steps,
        STEPS=steps_each, GROUP=matrix.group, BITS=matrix.bits, HAS_SHIFT=matrix.shift is not None,
        ROWS=tile, OUTPUTS=outputs, COLUMNS=columns, num_warps=warps,
    )  # fmt: skip
    return parts[0].to(x.dtype) if splits == 1 else parts.sum(0).to(x.dtype)
