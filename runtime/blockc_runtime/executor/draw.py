"""Logits of a step -> tokens of its rows; scores of classes and embeddings as they are.

In: logits of all rows that want some, and the rows. Out: their results, in order. Invariant: a row whose logits are
not usable yields a fault and no tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from blockc_runtime.request import Sampling, TokenLogprob
from blockc_runtime.sampling import sample, token_logprobs
from blockc_runtime.steering import steer
from blockc_runtime.step import Fault, Row, RowResult

_LIKELIEST = Sampling()


class Masks(Protocol):
    """What `draw` needs of `grammars.Grammars`."""

    def allowed(self, rows: Sequence[tuple[Row, Sequence[int]]], vocab: int) -> list[Tensor | str]:
        """Return for each row the tokens ``[vocab]`` that may follow its outputs, or why none can."""


def draw(logits: Tensor, rows: Sequence[Row], masks: Masks | None = None) -> list[RowResult]:
    """``logits [R, V]``: ``Row.logits`` consecutive rows of it for each of ``rows``. Without `sampling`: the likeliest.

    Rows that are steered are changed in place.
    """
    given: list[tuple[TokenLogprob, ...]] | None = None
    if any(row.given for row in rows):
        given, logits = _given(logits, rows)
    places = [(row, i) for row in rows for i in range(row.samples)]
    allowed = _allowed(places, masks, logits.shape[1])
    unsteered: dict[int, Tensor] = {}
    faults: dict[int, Fault] = {}
    for place, (row, i) in enumerate(places):
        if row.sampling is None or row.sampling.steering is None:
            continue
        if row.sampling.logprobs is not None:
            unsteered[place] = logits[place].clone()
        mask = allowed.get(place)
        if isinstance(mask, str):
            faults[place] = Fault(scope="row", message=mask)
        else:
            steer(logits[place], row.sampling.steering, _history(row, i), row.output_index + i, mask)
    drawn = sample(
        logits,
        [row.sampling or _LIKELIEST for row, _ in places],
        [row.output_index + i for row, i in places],
        unsteered=unsteered,
    )
    if faults:
        drawn = tuple(
            RowResult(tokens=(), logprobs=(), fault=faults[place]) if place in faults else result
            for place, result in enumerate(drawn)
        )
    results = []
    first = 0
    for number, row in enumerate(rows):
        results.append(_joined(drawn[first : first + row.samples], () if given is None else given[number]))
        first += row.samples
    return results


def _given(logits: Tensor, rows: Sequence[Row]) -> tuple[list[tuple[TokenLogprob, ...]], Tensor]:
    """Log probabilities of each row's ``given`` tokens, and the logits that are left to draw from."""
    parts = logits.split_with_sizes([row.logits for row in rows])
    given = [
        token_logprobs(part[: len(row.given)], row.given, row.given_top) for part, row in zip(parts, rows, strict=True)
    ]
    return given, torch.cat([part[len(row.given) :] for part, row in zip(parts, rows, strict=True)])


def _history(row: Row, sample: int) -> Sequence[int]:
    """The tokens before one of a row's samples."""
    return row.history[: len(row.history) - (row.samples - 1 - sample)]


def _allowed(places: Sequence[tuple[Row, int]], masks: Masks | None, vocab: int) -> dict[int, Tensor | str]:
    """What grammars allow, by place: asked for all together."""
    asked: dict[int, tuple[Row, Sequence[int]]] = {}
    for place, (row, i) in enumerate(places):
        if row.sampling is not None and row.sampling.steering is not None and row.sampling.steering.grammar is not None:
            history = _history(row, i)
            asked[place] = row, history[len(history) - (row.output_index + i) :]
    if not asked:
        return {}
    if masks is None:
        return dict.fromkeys(asked, "no grammars here")
    return dict(zip(asked, masks.allowed(list(asked.values()), vocab), strict=True))


def vectors(logits: Tensor, rows: Sequence[Row]) -> list[RowResult]:
    """``logits [R, classes or width]``: one row of it for each text, or for each token where those are wanted."""
    fault = Fault(scope="row", message="what the model yields is not finite")
    parts = logits.split_with_sizes([row.logits for row in rows])
    return [
        RowResult(tokens=(), logprobs=(), scores=tuple(own))
        if all(map(math.isfinite, own))
        else RowResult(tokens=(), logprobs=(), fault=fault)
        for own in (part.flatten().tolist() for part in parts)
    ]


def _joined(parts: Sequence[RowResult], given: tuple[TokenLogprob, ...]) -> RowResult:
    """The tokens of one row as one result."""
    fault = next((part.fault for part in parts if part.fault is not None), None)
    if fault is not None:
        return RowResult(tokens=(), logprobs=(), fault=fault)
    return RowResult(
        tokens=tuple(token for part in parts for token in part.tokens),
        logprobs=tuple(logprob for part in parts for logprob in part.logprobs),
        given=given,
    )
