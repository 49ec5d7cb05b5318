"""Logits of a step -> tokens of its rows, or their scores of classes.

In: logits of all rows that want some, and the rows. Out: their results, in order. Invariant: a row whose logits are
not usable yields a fault and no tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from blockc_runtime.request import Sampling
from blockc_runtime.sampling import sample
from blockc_runtime.step import Fault, Row, RowResult

_LIKELIEST = Sampling()


def draw(logits: Tensor, rows: Sequence[Row]) -> list[RowResult]:
    """``logits [R, V]``: ``samples`` consecutive rows of it for each of ``rows``. Without `sampling`: the likeliest."""
    places = [(row, i) for row in rows for i in range(row.samples)]
    drawn = sample(
        logits,
        [row.sampling or _LIKELIEST for row, _ in places],
        [row.output_index + i for row, i in places],
    )
    results = []
    first = 0
    for row in rows:
        results.append(_joined(drawn[first : first + row.samples]))
        first += row.samples
    return results


def scores(logits: Tensor) -> list[RowResult]:
    """``logits [R, classes]``: one row of it for each text."""
    fault = Fault(scope="row", message="the scores are not finite")
    return [
        RowResult(tokens=(), logprobs=(), scores=tuple(own))
        if all(map(math.isfinite, own))
        else RowResult(tokens=(), logprobs=(), fault=fault)
        for own in logits.tolist()
    ]


def _joined(parts: Sequence[RowResult]) -> RowResult:
    """The tokens of one row as one result."""
    fault = next((part.fault for part in parts if part.fault is not None), None)
    if fault is not None:
        return RowResult(tokens=(), logprobs=(), fault=fault)
    return RowResult(
        tokens=tuple(token for part in parts for token in part.tokens),
        logprobs=tuple(logprob for part in parts for logprob in part.logprobs),
    )
