"""Linears with sides on CUDA by kernels of blockc's own: all places and banks of a site at once.

In and out: as in `cuda.py`. One launch multiplies by A of all slots in use; one more applies B, scales and biases to up
to four outputs: tokens and spans of prompts, banks of different ranks and kinds, side by side. What is not stacked by
slot (rows, and changes that are not of low rank) is done as on any device. Invariant: equals `reference.py` up to
rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from blockc_runtime.ops.branch import Branch
from blockc_runtime.ops.linear.addresses import address_table
from blockc_runtime.ops.linear.kernels import low_rank_inner, low_rank_outer, scaled_inputs
from blockc_runtime.ops.linear.side_tiles import FEW_PLACES, SideTiles, StaticSides, tiles_of
from blockc_runtime.ops.linear.sides import SideWeights, apply_outputs, products
from blockc_runtime.ops.linear.weights import LinearWeights
from blockc_runtime.ops.sides import SideSet

# Banks, and outputs, that one launch has arguments for.
_AT_ONCE = 4
# Ranks of a product. Tensor cores take no fewer than the least.
_LEAST_RANKS, _MOST_RANKS = 16, 64
# Values that a thread reads at once where ranks and widths are multiples of as many: 16 bytes.
_ALIGNED = 8
# Columns of x, and of an output, that a program holds at once; and how often it does so with those of an output.
_COLUMNS, _WIDTH, _BLOCKS = 64, 128, 4
# How far A is read ahead.
_STAGES = 4
# Rows up to which terms are made beside the base's product: with more it needs all of a device, and they wait (H200: a
# layer's linears with one LoRA take 0.81 of the time at 1 row, 0.88 at 32, and 1.11 at 128).
_MOST_BESIDE = 32
# Programs that keep a large device busy.
_PROGRAMS = 512
# x is split into parts of so many columns where rows are of one token, and else where tiles are too few.
_PART, _MOST_SPLITS = 512, 16


def linears(x: Tensor, weights: LinearWeights, sides: SideSet) -> tuple[Tensor, ...]:
    """``x [1,T,in]`` or ``[T,in]`` -> ``[1,T,out]`` or ``[T,out]`` for each linear that reads ``x``."""
    if x.ndim == 2:
        return tuple(y[0] for y in linears(x.unsqueeze(0), weights, sides))
    if not sides:
        return weights(x)
    tiles, numbers = tiles_of([batch for _, batch in sides])
    if not tiles.count:
        return weights(x)
    banks: dict[int, SideWeights] = {number: side for number, (side, _) in zip(numbers, sides, strict=True)}
    is_recorded = isinstance(sides[0][1], StaticSides)
    if is_recorded and x.shape[1] <= _MOST_BESIDE and all(_is_plain(side) for side in banks.values()):
        return _beside(x, weights, tiles, banks)
    ys = _products(x, weights, sides, tiles, banks)
    for side, batch in sides:
        if not side.is_stacked:
            apply_outputs(ys, x, side, batch)
    rows = x[0] if x.stride(2) == 1 else x[0].contiguous()
    for first, near in _by_four(banks):
        _apply(ys, rows, tiles, first, near)
    return ys


def _is_plain(side: SideWeights) -> bool:
    """Terms of low rank and nothing else."""
    return not side.in_scales and not side.outputs


def _beside(
    x: Tensor, weights: LinearWeights, tiles: SideTiles, banks: Mapping[int, SideWeights]
) -> tuple[Tensor, ...]:
    """Terms while the base's product is made: it reads memory, and they mostly wait for it. Added up at the end."""
    branch = Branch(x.device)
    ys = weights(x)
    with branch:
        rows = x[0] if x.stride(2) == 1 else x[0].contiguous()
        outs = [y.shape[2] for y in ys]
        terms = x.new_zeros((1, x.shape[1], sum(outs)))
        apart = terms.split_with_sizes(outs, 2)
        for first, near in _by_four(banks):
            _apply(apart, rows, tiles, first, near, is_apart=True)
    branch.join()
    if (whole := _side_by_side(ys)) is not None:
        whole.add_(terms)
    else:
        torch._foreach_add_(list(ys), list(apart))
    return ys


def _side_by_side(ys: Sequence[Tensor]) -> Tensor | None:
    """``[1, T, sum of outs]`` of parts that lie in one tensor as joined matrices leave them."""
    stride, at = ys[0].stride(), ys[0].data_ptr()
    for y in ys:
        if y.stride() != stride or y.data_ptr() != at:
            return None
        at += y.shape[2] * y.element_size()
    total = sum(y.shape[2] for y in ys)
    return ys[0].as_strided((*ys[0].shape[:2], total), stride) if stride[1] == total else None


def _products(
    x: Tensor, weights: LinearWeights, sides: SideSet, tiles: SideTiles, banks: Mapping[int, SideWeights]
) -> tuple[Tensor, ...]:
    """Of what is read, scaled where all outputs read the same."""
    if any(side.in_scales and side.in_scale(weights.count) is None for side in banks.values()):
        return products(x, weights, sides)
    inputs = x
    for first, near in _by_four({n: side for n, side in banks.items() if side.in_scales}):
        inputs = x.clone(memory_format=torch.contiguous_format) if inputs is x else inputs
        size = x.shape[2]
        scaled_inputs[(tiles.count, triton.cdiv(size, _WIDTH))](
            inputs, size, tiles.values, tiles.used, *_tables(near, first, weights.count, x.device), first, size,
            PLACES=tiles.places, COLUMNS=_WIDTH,
        )  # fmt: skip
    return weights(inputs)


def _apply(
    ys: Sequence[Tensor],
    x: Tensor,
    tiles: SideTiles,
    first: int,
    banks: Mapping[int, SideWeights],
    *,
    is_apart: bool = False,
) -> None:
    """Banks ``first .. first + 3``, as many of them as there are. ``is_apart``: ``ys`` begin with nothing."""
    held = [side.low_rank for side in banks.values() if side.low_rank is not None]
    if not held and not any(side.is_stacked and side.outputs for side in banks.values()):
        return
    size, outputs, rank = x.shape[1], len(ys), max((own.rank for own in held), default=0)
    tables = _tables(banks, first, outputs, x.device)
    divides = all(value % _ALIGNED == 0 for value in (*(y.shape[2] for y in ys), *(own.rank for own in held)))
    aligned = _ALIGNED if divides else 1
    ranks = min(_MOST_RANKS, max(_LEAST_RANKS, triton.next_power_of_2(rank)))
    chunks = triton.cdiv(rank, ranks)
    columns = _part(size, tiles, outputs * max(chunks, 1))
    splits = triton.cdiv(size, columns)
    shape = (tiles.count, outputs, chunks, splits, tiles.places, ranks)
    inner = torch.empty(shape, dtype=torch.float32, device=x.device)
    if held:
        low_rank_inner[(tiles.count, splits, outputs * chunks)](
            x, x.stride(0), tiles.values, tiles.used, *tables, first, inner, outputs, chunks, size, columns,
            PLACES=tiles.places, RANKS=ranks, COLUMNS=_COLUMNS, ALIGNED=aligned, num_stages=_STAGES,
        )  # fmt: skip
    for output in range(0, outputs, _AT_ONCE):
        own = ys[output : output + _AT_ONCE]
        given = [own[min(i, len(own) - 1)] for i in range(_AT_ONCE)]
        low_rank_outer[(tiles.count, triton.cdiv(max(y.shape[2] for y in own), _BLOCKS * _WIDTH), len(own))](
            inner, outputs, chunks, tiles.values, tiles.used, *tables, first, output,
            *given, *(y.stride(1) for y in given),
            PLACES=tiles.places, RANKS=ranks, SPLITS=splits, BLOCKS=_BLOCKS, WIDTH=_WIDTH, ALIGNED=aligned,
            HAS_MORE=chunks > 1, IS_APART=is_apart,
        )  # fmt: skip


def _part(size: int, tiles: SideTiles, each: int) -> int:
    """Columns of a part of ``size``: of a tile in ``each`` pieces. Whoever adds up parts reads all of them.

    How many there are is compiled in: where it follows the number of tiles, powers of two keep it to few kernels.
    """
    steps = -(-size // _COLUMNS)
    splits = size // _PART
    if tiles.places != FEW_PLACES:
        most = max(1, min(_PROGRAMS // (tiles.count * each), steps // 4))
        splits = 1 << (most.bit_length() - 1)
    return -(-steps // max(1, min(splits, _MOST_SPLITS))) * _COLUMNS


def _by_four(banks: Mapping[int, SideWeights]) -> list[tuple[int, dict[int, SideWeights]]]:
    """(first number, those of the four that there are)."""
    firsts = sorted({number // _AT_ONCE * _AT_ONCE for number in banks})
    return [(first, {n: side for n, side in banks.items() if 0 <= n - first < _AT_ONCE}) for first in firsts]


def _tables(banks: Mapping[int, SideWeights], first: int, outputs: int, device: torch.device) -> list[Any]:
    """What kernels know of four banks; of those that have nothing here, that they have nothing."""
    own = range(first, first + _AT_ONCE)
    return [address_table(banks[n], outputs, device) if n in banks else _nobody(device) for n in own]


@cache
def _nobody(device: torch.device) -> Tensor:
    """The table of a bank that has nothing."""
    return torch.zeros(5, dtype=torch.int64, device=device)
