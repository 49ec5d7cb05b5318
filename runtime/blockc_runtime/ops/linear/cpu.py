"""Linears with sides on CPU.

In: the input, weights, and the sides of the launch. Out: one output per linear. Invariant: equals
`reference.py`; without sides nothing is paid for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blockc_runtime.ops.linear.sides import LowRankWeights, in_turn, linears_with
from blockc_runtime.ops.linear.weights import LinearWeights
from blockc_runtime.ops.sides import DecodeSides, SideSet


def _add_decode(ys: Sequence[Tensor], x: Tensor, side: LowRankWeights, decode: DecodeSides) -> None:
    """Each row times the A and B of its own slot: a sum of weighted table rows.

    `embedding_bag` reads A and B in place, whatever the slots, at 25 and 13 GB/s on one core where
    `bmm` of stacks already in order reads 11 and 8 (bfloat16, 16 rows, rank 16, 3 sites).
    """
    rows = slice(decode.start, decode.stop)
    _, width, ranks = side.a.shape
    inner = _weighted_rows(side.a.view(-1, ranks), x[0, rows], decode.bags(width))
    for out in side.outputs:
        part = inner[:, out.rank_start : out.rank_stop]
        table = out.b.view(-1, out.b.shape[2])
        outer = _weighted_rows(table, part, decode.bags(out.b.shape[1]))
        ys[out.output][0, rows].add_(outer)


def _weighted_rows(table: Tensor, weights: Tensor, bags: tuple[Tensor, Tensor]) -> Tensor:
    """``table [N * width, F]``, ``weights [n, width]`` -> ``[n, F]``, summed in float32."""
    index, offsets = bags
    out: Tensor = torch.embedding_bag(table, index, offsets, False, 0, False, weights.reshape(-1), False)[0]
    return out


add_low_rank = in_turn(_add_decode)


def linears(x: Tensor, weights: LinearWeights, sides: SideSet) -> tuple[Tensor, ...]:
    """``x [1,T,in]`` or ``[T,in]`` -> ``[1,T,out]`` or ``[T,out]`` for each linear that reads ``x``."""
    return linears_with(x, weights, sides, add_low_rank)
