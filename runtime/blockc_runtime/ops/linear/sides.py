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

    @property
    def nbytes(self) -> int:
        """Bytes of A and B."""
        return self.a.nbytes + sum(output.b.nbytes for output in self.outputs)


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

    singles: tuple[DecodeSides, ...]
    spans: tuple[Span, ...]


SideSet = tuple[tuple[SideWeights, SideBatch], ...]


def side_batch(rows: Sequence[tuple[int, int | None]], *, device: torch.device) -> SideBatch:
    """Group the tokens of one bank. ``rows``: (tokens, slot) in order; slot None: another bank, or none.

    Neighbours of one token form one group, neighbours of several tokens and one slot one span.
    """
    runs: list[tuple[int, list[int]]] = []
    spans: list[Span] = []
    token = 0
    for count, slot in rows:
        if slot is not None and count == 1:
            if not runs or runs[-1][0] + len(runs[-1][1]) != token:
                runs.append((token, []))
            runs[-1][1].append(slot)
        elif slot is not None and count:
            start = token
            if spans and (spans[-1].slot, spans[-1].stop) == (slot, token):
                start = spans.pop().start
            spans.append(Span(start=start, stop=token + count, slot=slot))
        token += count
    return SideBatch(
        singles=tuple(
            DecodeSides(start=start, stop=start + len(slots), slots=torch.tensor(slots).to(device))
            for start, slots in runs
        ),
        spans=tuple(spans),
    )


def add_span(ys: Sequence[Tensor], x: Tensor, weights: SideWeights, span: Span) -> None:
    """Many tokens of one fine-tune. ``ys[i] [1, T, out]`` is updated in place, ``x [1, T, in]``."""
    rows = slice(span.start, span.stop)
    inner = torch.mm(x[0, rows], weights.a[span.slot])
    for out in weights.outputs:
        part = inner[:, out.rank_start : out.rank_stop]
        ys[out.output][0, rows].add_(torch.mm(part, out.b[span.slot]))
