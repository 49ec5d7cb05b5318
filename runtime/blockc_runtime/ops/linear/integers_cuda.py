"""Linears on matrices of integers on CUDA.

Few rows are multiplied by the integers themselves, in one kernel that reads every byte of the matrix once. For many
rows a kernel makes a slab of the matrix dense, and the library multiplies by it.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from blockc_runtime.ops.integers import IntegerMatrix, slabs, unpacked
from blockc_runtime.ops.linear.kernels import integer_product, integers_dense

# Rows up to which the integers are multiplied themselves. Tensor cores take no fewer rows and columns than the least.
_FEW_ROWS, _LEAST = 64, 16
# Columns of a run, at most: a divisor of the group.
_MOST_COLUMNS = 128
# Outputs of a program, and its warps: the best of 16 to 64 and 2 to 4 on an H100.
_OUTPUTS, _WARPS = 64, 4
# Programs that keep a large device busy; the columns are split among them where the outputs are too few.
_PROGRAMS = 256
# Values that are dense at once.
_SLAB = 1 << 26


class KernelProduct:
    """``x [n, in]`` -> ``[n, out]``. ``codes`` are in the order of `kernels`."""

    def __init__(self, matrix: IntegerMatrix, run: int) -> None:
        self.codes = in_runs(matrix, run)
        self.scale, self.shift = matrix.scale.contiguous(), matrix.shift
        self.bits, self.group, self.run = matrix.bits, matrix.group, run
        self.outs, self.width = matrix.shape
        self.nbytes = matrix.nbytes

    @classmethod
    def of(cls, matrix: IntegerMatrix) -> KernelProduct | None:
        """None where groups are too small for the kernels."""
        run = _MOST_COLUMNS
        while matrix.group % run or matrix.shape[1] % (run * (8 // matrix.bits)):
            run //= 2
        return cls(matrix, run) if run >= _LEAST else None

    def __call__(self, x: Tensor) -> Tensor:
        """Few rows: float32 sums, rounded once."""
        if 0 < len(x) <= _FEW_ROWS:
            return self.few(x.contiguous())
        y = x.new_empty(len(x), self.outs)
        for start, stop in slabs(self.outs, self.width, _SLAB):
            y[:, start:stop] = torch.mm(x, self.dense(start, stop, x.dtype).t())
        return y

    def few(self, x: Tensor) -> Tensor:
        """By `integer_product`."""
        rows = len(x)
        blocks = triton.cdiv(self.outs, _OUTPUTS)
        steps = self.width // (self.run * (8 // self.bits))
        splits = max(1, min(_PROGRAMS // blocks, steps // 4))
        steps_each = triton.cdiv(steps, splits)
        splits = triton.cdiv(steps, steps_each)
        dtype = x.dtype if splits == 1 else torch.float32
        parts = torch.empty((splits, rows, self.outs), dtype=dtype, device=x.device)
        integer_product[(blocks, splits)](
            x, self.codes, self.scale, self.scale if self.shift is None else self.shift, parts,
            rows, self.outs, self.width, self.width // self.group, steps,
            STEPS=steps_each, GROUP=self.group, BITS=self.bits, HAS_SHIFT=self.shift is not None,
            ROWS=max(_LEAST, triton.next_power_of_2(rows)), OUTPUTS=_OUTPUTS, RUN=self.run, num_warps=_WARPS,
        )  # fmt: skip
        return parts[0] if splits == 1 else parts.sum(0).to(x.dtype)

    def dense(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows ``start .. stop`` of the matrix, by `integers_dense`."""
        out = torch.empty((stop - start, self.width), dtype=dtype, device=self.codes.device)
        shift = self.scale if self.shift is None else self.shift
        grid = triton.cdiv(stop - start, _OUTPUTS), self.width // (self.run * (8 // self.bits))
        integers_dense[grid](
            self.codes[start:], self.scale[start:], shift[start:], out,
            stop - start, self.width, self.width // self.group,
            GROUP=self.group, BITS=self.bits, HAS_SHIFT=self.shift is not None, OUTPUTS=_OUTPUTS, RUN=self.run,
        )  # fmt: skip
        return out


def in_runs(matrix: IntegerMatrix, run: int) -> Tensor:
    """Codes ``[out, in * bits / 8]`` of which a byte holds one of a run and the one at its place in the next run."""
    if matrix.bits == 8:
        return matrix.codes.contiguous()
    parts = []
    for start, stop in matrix.slabs():
        low, high = unpacked(matrix.codes[start:stop], 4).view(stop - start, -1, 2, run).unbind(2)
        parts.append((low | (high << 4)).flatten(1))
    return torch.cat(parts)
