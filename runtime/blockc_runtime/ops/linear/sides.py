"""Low-rank sides of many fine-tunes at linears that read the same value.

In: the linears' outputs and input, stacked A and B of a bank of fine-tunes alike in rank and sites, and which rows use
which of them. Out: the outputs, updated in place. Invariant: a row gets its own fine-tune's terms and no other's; the
grouping is made once a launch, never per site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SideOutput:
    """B of one linear: ``b [N, out, r]``, scale folded in, for ranks ``rank_start .. rank_stop`` of A."""

    output: int
    rank_start: int
    rank_stop: int
    b: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SideWeights:
    """``a [N, R, in]``: A of all linears in ``outputs``, one above the other, of N fine-tunes."""

    a: Tensor
    outputs: tuple[SideOutput, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSides:
    """Rows of one token: tokens ``start .. stop`` use ``slots`` (None: slots ``first_slot ...`` in order)."""

    start: int
    stop: int
    first_slot: int
    slots: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Tokens ``start .. stop`` use one slot."""

    start: int
    stop: int
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBatch:
    """Which tokens of a launch use which fine-tune of one bank."""

    decode: DecodeSides | None
    spans: tuple[Span, ...]


SideSet = tuple[tuple[SideWeights, SideBatch], ...]


def side_batch(
    singles: Sequence[tuple[int, int]], spans: Sequence[Span], *, device: torch.device
) -> SideBatch:
    """``singles``: (token, slot) of rows of one token, on consecutive tokens. Neighbours of one slot are joined."""
    joined: list[Span] = []
    for span in spans:
        if joined and (joined[-1].slot, joined[-1].stop) == (span.slot, span.start):
            joined[-1] = Span(start=joined[-1].start, stop=span.stop, slot=span.slot)
        else:
            joined.append(span)
    decode = None
    if singles:
        slots = [slot for _, slot in singles]
        ordered = slots == list(range(slots[0], slots[0] + len(slots)))
        decode = DecodeSides(
            start=singles[0][0],
            stop=singles[-1][0] + 1,
            first_slot=slots[0],
            slots=None if ordered else torch.tensor(slots).to(device),
        )
    return SideBatch(decode=decode, spans=tuple(joined))


def add_sides(ys: Sequence[Tensor], x: Tensor, sides: SideSet) -> None:
    """``ys``: ``[1, T, out]`` each, updated in place. ``x``: ``[1, T, in]``."""
    for weights, batch in sides:
        if batch.decode is not None:
            _add_decode(ys, x[0], weights, batch.decode)
        for span in batch.spans:
            _add_span(ys, x[0], weights, span)


def _add_decode(ys: Sequence[Tensor], x: Tensor, weights: SideWeights, decode: DecodeSides) -> None:
    rows = slice(decode.start, decode.stop)
    count = decode.stop - decode.start
    inner = torch.bmm(x[rows].unsqueeze(1), _pick(weights.a, decode, count).transpose(1, 2))
    for out in weights.outputs:
        part = inner[..., out.rank_start : out.rank_stop]
        outer = torch.bmm(part, _pick(out.b, decode, count).transpose(1, 2))
        ys[out.output][0, rows].add_(outer.squeeze(1))


def _pick(stack: Tensor, decode: DecodeSides, count: int) -> Tensor:
    if decode.slots is None:
        return stack[decode.first_slot : decode.first_slot + count]
    return stack.index_select(0, decode.slots)


def _add_span(ys: Sequence[Tensor], x: Tensor, weights: SideWeights, span: Span) -> None:
    rows = slice(span.start, span.stop)
    inner = torch.mm(x[rows], weights.a[span.slot].t())
    for out in weights.outputs:
        part = inner[:, out.rank_start : out.rank_stop]
        ys[out.output][0, rows].add_(torch.mm(part, out.b[span.slot].t()))
