"""Linears with sides on CUDA, terms of low rank by kernels of blockc's own: all places and banks of a site at once.

In and out: as in `cuda.py`. One launch multiplies by A of all slots in use, one more by B for up to four outputs:
tokens and spans of prompts, and banks of different ranks, side by side. Invariant: equals `reference.py` up to
rounding. Tested in Triton's interpreter; untested on hardware so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import triton
from torch import Tensor

from blockc_runtime.ops.linear.kernels import low_rank_inner, low_rank_outer
from blockc_runtime.ops.linear.side_tiles import SideTiles, tiles_of
from blockc_runtime.ops.linear.sides import LowRankUse, LowRankWeights, linears_with
from blockc_runtime.ops.linear.weights import LinearWeights
from blockc_runtime.ops.sides import SideSet

# Banks, and outputs, that one launch has arguments for.
_AT_ONCE = 4
# Ranks of a product. Tensor cores take no fewer than the least.
_LEAST_RANKS, _MOST_RANKS = 16, 64
# Values that a thread reads at once where ranks and widths are multiples of as many: 16 bytes.
_ALIGNED = 8
# Columns of x, and of an output, that a program holds at once.
_COLUMNS, _WIDTH = 64, 128
# Programs that keep a large device busy; x is split among them where tiles are too few.
_PROGRAMS = 256


def linears(x: Tensor, weights: LinearWeights, sides: SideSet) -> tuple[Tensor, ...]:
    """``x [1,T,in]`` or ``[T,in]`` -> ``[1,T,out]`` or ``[T,out]`` for each linear that reads ``x``."""
    return linears_with(x, weights, sides, _add_all)


def _add_all(ys: Sequence[Tensor], x: Tensor, uses: Sequence[LowRankUse]) -> None:
    tiles, numbers = tiles_of([batch for _, batch in uses])
    if not tiles.count:
        return
    rows = x[0] if x.stride(2) == 1 else x[0].contiguous()
    for first in range(0, max(numbers) + 1, _AT_ONCE):
        near = {n - first: own for (own, _), n in zip(uses, numbers, strict=True) if 0 <= n - first < _AT_ONCE}
        if near:
            _add(ys, rows, tiles, first, near)


def _add(ys: Sequence[Tensor], x: Tensor, tiles: SideTiles, first: int, banks: Mapping[int, LowRankWeights]) -> None:
    """Banks ``first .. first + 3``, as many of them as there are."""
    nobody = None if len(banks) == _AT_ONCE else torch.zeros(4, dtype=torch.int64, device=x.device)
    tables = [banks[i].addresses if i in banks else nobody for i in range(_AT_ONCE)]
    size, outputs, rank = x.shape[1], len(ys), max(own.rank for own in banks.values())
    ranks = min(_MOST_RANKS, max(_LEAST_RANKS, triton.next_power_of_2(rank)))
    aligned = _ALIGNED if all(own.divides(_ALIGNED) for own in banks.values()) else 1
    chunks, steps = triton.cdiv(rank, ranks), triton.cdiv(size, _COLUMNS)
    splits = max(1, min(_PROGRAMS // (tiles.count * outputs * chunks), steps // 4))
    columns = triton.cdiv(steps, splits) * _COLUMNS
    splits = triton.cdiv(size, columns)
    shape = (splits, tiles.count, outputs, chunks, tiles.places, ranks)
    inner = torch.empty(shape, dtype=torch.float32, device=x.device)
    low_rank_inner[(tiles.count, splits, outputs * chunks)](
        x, x.stride(0), tiles.values, *tables, first, inner, outputs, chunks, size, columns,
        PLACES=tiles.places, RANKS=ranks, COLUMNS=_COLUMNS, ALIGNED=aligned,
    )  # fmt: skip
    for output in range(0, outputs, _AT_ONCE):
        own = ys[output : output + _AT_ONCE]
        given = [own[min(i, len(own) - 1)] for i in range(_AT_ONCE)]
        low_rank_outer[(tiles.count, triton.cdiv(max(y.shape[2] for y in own), _WIDTH), len(own))](
            inner, splits, outputs, chunks, tiles.values, *tables, first, output,
            *given, *(y.stride(1) for y in given),
            PLACES=tiles.places, RANKS=ranks, WIDTH=_WIDTH, ALIGNED=aligned,
        )  # fmt: skip
