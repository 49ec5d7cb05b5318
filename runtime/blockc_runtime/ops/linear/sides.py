"""Low-rank sides of many fine-tunes at linears that read one value, stacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blockc_runtime.ops.sides import Span


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


def add_span(ys: Sequence[Tensor], x: Tensor, weights: SideWeights, span: Span) -> None:
    """Many tokens of one fine-tune. ``ys[i] [1, T, out]`` is updated in place, ``x [1, T, in]``."""
    rows = slice(span.start, span.stop)
    inner = torch.mm(x[0, rows], weights.a[span.slot])
    for out in weights.outputs:
        part = inner[:, out.rank_start : out.rank_stop]
        ys[out.output][0, rows].add_(torch.mm(part, out.b[span.slot]))
