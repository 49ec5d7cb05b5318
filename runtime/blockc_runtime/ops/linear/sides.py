"""Sides of many fine-tunes at linears that read one value: what they hold, stacked by slot, and how it is applied.

The form is that of `blockc.ir.codecs`: ``y = s o (W' (t o x)) + sum_i D_i x + b``. What a bank has not, costs nothing.
Invariant: a place gets its own fine-tune's terms and no other's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from blockc_runtime.ops.linear.weights import LinearWeights
from blockc_runtime.ops.sides import DecodeSides, SideBatch, SideSet, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankOutput:
    """B of one linear: ``b [N, r, out]`` with the scale folded in.

    It applies to ranks ``rank_start .. rank_stop`` of what A gives.
    """

    output: int
    rank_start: int
    rank_stop: int
    b: Tensor


@dataclass(frozen=True, kw_only=True)
class LowRankWeights:
    """``a [N, in, R]``: A of all linears in ``outputs`` side by side, of N fine-tunes."""

    a: Tensor
    outputs: tuple[LowRankOutput, ...]

    @cached_property
    def places(self) -> tuple[tuple[int, int, int, int], ...]:
        """For kernels: for each output its number, the address of B, its width and its first rank."""
        return tuple((out.output, out.b.data_ptr(), out.b.shape[2], out.rank_start) for out in self.outputs)

    @property
    def rank(self) -> int:
        """Of each output."""
        return self.outputs[0].rank_stop - self.outputs[0].rank_start

    @property
    def nbytes(self) -> int:
        """Bytes of A and B."""
        return self.a.nbytes + sum(output.b.nbytes for output in self.outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of one linear's matrix that a fine-tune replaces: ``index [n]``, ``weight [n, in]``, the base's ``bias``."""

    index: Tensor
    weight: Tensor
    bias: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of all three."""
        return self.index.nbytes + self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


class Additive(Protocol):
    """A change of one linear's matrix that is not of low rank, in the form in which it is kept."""

    @property
    def nbytes(self) -> int:
        """Bytes as it is kept."""

    def add_to(self, y: Tensor, x: Tensor) -> None:
        """Add ``x D^T`` to ``y [n, out]`` in place, ``x [n, in]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSides:
    """What is done to one linear's output, by slot.

    ``scale`` and ``bias`` ``[N, out]``: ``y = scale * y + bias``, so that ``bias`` is what is to be added to the
    base's; ``rows`` and ``additive`` one for each slot.
    """

    output: int
    scale: Tensor | None = None
    bias: Tensor | None = None
    rows: Sequence[Rows] = ()
    additive: Sequence[tuple[Additive, ...]] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        stacks = sum(stack.nbytes for stack in (self.scale, self.bias) if stack is not None)
        parts = sum(item.nbytes for terms in self.additive for item in terms)
        return stacks + sum(rows.nbytes for rows in self.rows) + parts


@dataclass(frozen=True, kw_only=True)
class SideWeights:
    """One bank at one group of linears. ``in_scales``: outputs with the scale ``[N, in]`` of what they read.

    ``tables``: what kernels on the device know of it, by the number of linears (`addresses.py`).
    """

    low_rank: LowRankWeights | None = None
    in_scales: tuple[tuple[frozenset[int], Tensor], ...] = ()
    outputs: tuple[OutputSides, ...] = ()
    tables: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def is_stacked(self) -> bool:
        """Whether all that is done to outputs is stacks by slot: terms of low rank, scales and biases."""
        return not any(out.rows or out.additive for out in self.outputs)

    def in_scale(self, count: int) -> Tensor | None:
        """The scale of what all of ``count`` linears read, if there is one."""
        alike = len(self.in_scales) == 1 and len(self.in_scales[0][0]) == count
        return self.in_scales[0][1] if alike else None

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        total = 0 if self.low_rank is None else self.low_rank.nbytes
        return total + sum(scale.nbytes for _, scale in self.in_scales) + sum(out.nbytes for out in self.outputs)


# Adds terms of low rank in place: ``(ys, x, weights, batch)``, ``ys[i] [1, T, out]``, ``x [1, T, in]``.
AddLowRank = Callable[[Sequence[Tensor], Tensor, LowRankWeights, SideBatch], None]
# The same for rows of one token each.
AddDecode = Callable[[Sequence[Tensor], Tensor, LowRankWeights, DecodeSides], None]


def linears_with(x: Tensor, weights: LinearWeights, sides: SideSet, add_low_rank: AddLowRank) -> tuple[Tensor, ...]:
    """``x [1,T,in]`` or ``[T,in]`` -> ``[1,T,out]`` or ``[T,out]`` for each linear that reads ``x``."""
    if x.ndim == 2:
        return tuple(y[0] for y in linears_with(x.unsqueeze(0), weights, sides, add_low_rank))
    if not sides:
        return weights(x)
    ys = products(x, weights, sides)
    for side, batch in sides:
        if side.outputs:
            apply_outputs(ys, x, side, batch)
        if side.low_rank is not None:
            add_low_rank(ys, x, side.low_rank, batch)
    return ys


def in_turn(add_decode: AddDecode) -> AddLowRank:
    """Runs of rows of one token each by ``add_decode``, and spans by plain products."""

    def add(ys: Sequence[Tensor], x: Tensor, weights: LowRankWeights, batch: SideBatch) -> None:
        for decode in batch.singles:
            add_decode(ys, x, weights, decode)
        for span in batch.spans:
            _add_span(ys, x, weights, span)

    return add


def products(x: Tensor, weights: LinearWeights, sides: SideSet) -> tuple[Tensor, ...]:
    """``W (t o x) + b`` of each linear, ``x [1, T, in]``. A second product where t holds for some outputs only."""
    apart: list[tuple[frozenset[int], Tensor, SideBatch]] = []
    inputs = x
    for side, batch in sides:
        for outputs, scale in side.in_scales:
            if side.in_scale(weights.count) is not None:
                inputs = x.clone() if inputs is x else inputs
                inputs[0].index_copy_(0, batch.tokens, _scaled(x, scale, batch))
            else:
                apart.append((outputs, scale, batch))
    ys = weights(inputs)
    for outputs, scale, batch in apart:
        own = weights(_scaled(x, scale, batch).unsqueeze(0))
        for output in outputs:
            ys[output][0].index_copy_(0, batch.tokens, own[output][0])
    return ys


def _scaled(x: Tensor, scale: Tensor, batch: SideBatch) -> Tensor:
    return x[0].index_select(0, batch.tokens).mul_(scale.index_select(0, batch.slots))


def apply_outputs(ys: Sequence[Tensor], x: Tensor, weights: SideWeights, batch: SideBatch) -> None:
    """All but the terms of low rank, in place. ``ys[i] [1, T, out]``, ``x [1, T, in]``."""
    for out in weights.outputs:
        y = ys[out.output][0]
        if out.rows:
            _replace_rows(y, x, weights, out, batch)
        if out.scale is not None or out.bias is not None:
            y.index_copy_(0, batch.tokens, _scale_and_shift(y, out, batch))
        if out.additive:
            for slot, places in batch.by_slot:
                own = y.index_select(0, places)
                for term in out.additive[slot]:
                    term.add_to(own, x[0].index_select(0, places))
                y.index_copy_(0, places, own)


def _replace_rows(y: Tensor, x: Tensor, weights: SideWeights, out: OutputSides, batch: SideBatch) -> None:
    """The base's bias is added again, as ``y`` has it."""
    scale = next((scale for outputs, scale in weights.in_scales if out.output in outputs), None)
    for slot, places in batch.by_slot:
        rows = out.rows[slot]
        own = x[0].index_select(0, places)
        if scale is not None:
            own = own * scale[slot]
        y[places.unsqueeze(1), rows.index] = torch.nn.functional.linear(own, rows.weight, rows.bias)


def _scale_and_shift(y: Tensor, out: OutputSides, batch: SideBatch) -> Tensor:
    own = y.index_select(0, batch.tokens)
    if out.scale is not None:
        own.mul_(out.scale.index_select(0, batch.slots))
    if out.bias is not None:
        own.add_(out.bias.index_select(0, batch.slots))
    return own


def _add_span(ys: Sequence[Tensor], x: Tensor, weights: LowRankWeights, span: Span) -> None:
    """Many tokens of one fine-tune. ``ys[i] [1, T, out]`` is updated in place, ``x [1, T, in]``."""
    rows = slice(span.start, span.stop)
    inner = torch.mm(x[0, rows], weights.a[span.slot])
    for out in weights.outputs:
        part = inner[:, out.rank_start : out.rank_stop]
        ys[out.output][0, rows].add_(torch.mm(part, out.b[span.slot]))
