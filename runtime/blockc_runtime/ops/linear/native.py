"""Linears with sides on CPU, terms of low rank by blockc's own kernel: all rows of a bank in one call.

In and out: as in `cpu.py`. Invariant: equals it up to rounding; what A gives is kept in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof, c_int64

import torch
from torch import Tensor

from blockc_runtime.native.library import DTYPES
from blockc_runtime.native.queue import at_once, call
from blockc_runtime.ops.linear import cpu
from blockc_runtime.ops.linear.by_kernel import KernelWeights
from blockc_runtime.ops.linear.sides import LowRankWeights, linears_with
from blockc_runtime.ops.linear.weights import LinearWeights
from blockc_runtime.ops.sides import SideBatch, SideSet


def linears(x: Tensor, weights: LinearWeights, sides: SideSet) -> tuple[Tensor, ...]:
    """``x [1,T,in]`` or ``[T,in]`` -> ``[1,T,out]`` or ``[T,out]`` for each linear that reads ``x``."""
    if isinstance(weights, KernelWeights) and not any(side.in_scales or side.outputs for side, _ in sides):
        return linears_with(x, weights, sides, _add_low_rank)
    with at_once():
        return linears_with(x, weights, sides, _add_low_rank)


def _add_low_rank(ys: Sequence[Tensor], x: Tensor, weights: LowRankWeights, batch: SideBatch) -> None:
    dtype = DTYPES.get(x.dtype)
    if dtype is None or x.stride(2) != 1:
        with at_once():
            cpu.add_low_rank(ys, x, weights, batch)
        return
    table, a = batch.table, weights.a
    outputs: list[int] = []
    for output, b, width, rank_start in weights.places:
        y = ys[output]
        outputs += (y.data_ptr() - ys[0].data_ptr(), y.stride(1), b, width, rank_start)
    _, size, ranks = a.shape
    places = (c_int64 * len(outputs))(*outputs)
    call(
        "low_rank", (x, ys, places), dtype,
        x.data_ptr(), x.stride(1), size, a.data_ptr(), ranks, ranks // len(weights.places),
        table.values.data_ptr(), table.count, ys[0].data_ptr(), addressof(places), len(weights.places),
        torch.get_num_threads(),
    )  # fmt: skip
