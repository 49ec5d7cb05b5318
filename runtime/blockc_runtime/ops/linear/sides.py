"""Low-rank sides of many fine-tunes at linears that read one value: what they hold, who uses which.

In: which rows of a launch use which fine-tune. Out: the grouping, made once a launch and used at
every site. Invariant: a row gets its own fine-tune's terms and no other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SideOutput:
    """B of one linear: ``b [N, r, out]`` with the scale folded in.

    It applies to ranks ``rank_start .. rank_stop`` of what A gives.
    """

    output: int
    rank_start: int
    rank_stop: int
    b: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SideWeights:
    """``a [N, in, R]``: A of all linears in ``outputs`` side by side, of N fine-tunes."""

    a: Tensor
    outputs: tuple[SideOutput, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSides:
    """Rows of one token: tokens ``start .. stop`` use ``slots [stop - start]``."""

    start: int
    stop: int
    slots: Tensor
    _bags: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def bags(self, width: int) -> tuple[Tensor, Tensor]:
        """Where each row's ``width`` consecutive rows lie in a table of N * width: (all, offsets)."""
        if width not in self._bags:
            inside = torch.arange(width, device=self.slots.device)
            index = (self.slots[:, None] * width + inside).view(-1)
            offsets = torch.arange(0, index.shape[0], width, device=self.slots.device)
            self._bags[width] = index, offsets
        return self._bags[width]


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
    """Group the tokens of one bank. ``singles``: (token, slot) of rows of one, on consecutive tokens.

    Spans that touch and use one slot are joined.
    """
    joined: list[Span] = []
    for span in spans:
        if joined and (joined[-1].slot, joined[-1].stop) == (span.slot, span.start):
            joined[-1] = Span(start=joined[-1].start, stop=span.stop, slot=span.slot)
        else:
            joined.append(span)
    decode = None
    if singles:
        slots = torch.tensor([slot for _, slot in singles]).to(device)
        decode = DecodeSides(start=singles[0][0], stop=singles[-1][0] + 1, slots=slots)
        assert decode.stop - decode.start == len(singles)
    return SideBatch(decode=decode, spans=tuple(joined))


def add_span(ys: Sequence[Tensor], x: Tensor, weights: SideWeights, span: Span) -> None:
    """Many tokens of one fine-tune. ``ys[i] [1, T, out]`` is updated in place, ``x [1, T, in]``."""
    rows = slice(span.start, span.stop)
    inner = torch.mm(x[0, rows], weights.a[span.slot])
    for out in weights.outputs:
        part = inner[:, out.rank_start : out.rank_stop]
        ys[out.output][0, rows].add_(torch.mm(part, out.b[span.slot]))
