"""Linears with sides on CUDA: batched products over gathered stacks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blockc_runtime.ops.linear.sides import LowRankWeights, in_turn, linears_with
from blockc_runtime.ops.linear.weights import LinearWeights
from blockc_runtime.ops.sides import DecodeSides, SideSet


def _add_decode(ys: Sequence[Tensor], x: Tensor, side: LowRankWeights, decode: DecodeSides) -> None:
    rows = slice(decode.start, decode.stop)
    inner = torch.bmm(x[0, rows].unsqueeze(1), side.a.index_select(0, decode.slots))
    for out in side.outputs:
        part = inner[..., out.rank_start : out.rank_stop]
        outer = torch.bmm(part, out.b.index_select(0, decode.slots))
        ys[out.output][0, rows].add_(outer.squeeze(1))


add_low_rank = in_turn(_add_decode)


def linears(x: Tensor, weights: LinearWeights, sides: SideSet) -> tuple[Tensor, ...]:
    """``x [1,T,in]`` or ``[T,in]`` -> ``[1,T,out]`` or ``[T,out]`` for each linear that reads ``x``."""
    return linears_with(x, weights, sides, add_low_rank)
