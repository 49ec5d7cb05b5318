"""Linears with sides on CPU, terms of low rank by blockc's own kernel: all rows of a bank in one call.

In and out: as in `cpu.py`. Invariant: equals it up to rounding; what A gives is kept in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64

import torch
from torch import Tensor

from blockc_runtime.native.library import DTYPES, loaded
from blockc_runtime.ops.linear import cpu
from blockc_runtime.ops.linear.sides import LowRankWeights, linears_with
from blockc_runtime.ops.linear.weights import LinearWeights
from blockc_runtime.ops.sides import SideBatch, SideSet


def linears(x: Tensor, weights: LinearWeights, sides: SideSet) -> tuple[Tensor, ...]:
    """``x [1,T,in]`` or ``[T,in]`` -> ``[1,T,out]`` or ``[T,out]`` for each linear that reads ``x``."""
    return linears_with(x, weights, sides, _add_low_rank)


def _add_low_rank(ys: Sequence[Tensor], x: Tensor, weights: LowRankWeights, batch: SideBatch) -> None:
    dtype = DTYPES.get(x.dtype)
    if dtype is None or x.stride(2) != 1:
        cpu.add_low_rank(ys, x, weights, batch)
        return
    table, a = batch.table, weights.a
    outputs: list[int] = []
    for output, b, width, rank_start in weights.places:
        y = ys[output]
        outputs += (y.data_ptr(), y.stride(1), b, width, rank_start)
    _, size, ranks = a.shape
    loaded().low_rank(
        dtype,
        x.data_ptr(), x.stride(1), size, a.data_ptr(), ranks, ranks // len(weights.places),
        table.values.data_ptr(), table.count, (c_int64 * len(outputs))(*outputs), len(weights.places),
        torch.get_num_threads(),
    )  # fmt: skip
