"""Tokens drawn where the logits are: the next step reads them there, and the host may learn of them later.

In: logits of rows that are drawn without looking at the tokens before. Out: tokens on the device, and a copy on its way
to the host. Invariant: the tokens are those of `sampling.sample`; nothing here waits for the device but `Drawn.found`.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blockc_runtime.ops.transfer import on_device
from blockc_runtime.sampling import (
    how_many,
    is_filtered,
    least_weight,
    rows_at_once,
    top_k_of,
    uniform_bits,
    whole_weights,
)
from blockc_runtime.step import Row

_LIMBS, _LIMB_BITS = 4, 16
# What is known of a row beside its random bits.
_COLUMNS = 5
# Sorting takes so many times the memory.
_SORTED = 4


def draws_alone(row: Row) -> bool:
    """Whether a row's token follows from its logits, its sampling and its index alone, and nothing else is asked."""
    own = row.sampling
    return own is not None and row.samples == row.logits == 1 and own.steering is None and own.logprobs is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """``tokens [n]`` on the device. ``copy [2n + t]`` on the host, once ``event`` has happened (None: it has)."""

    tokens: Tensor
    copy: Tensor
    event: torch.cuda.Event | None

    def found(self) -> tuple[list[int], list[bool], list[bool]]:
        """Tokens; whether the logits of each were sound; the flags that were given. Waits for the device."""
        if self.event is not None:
            self.event.synchronize()
        values, count = self.copy.tolist(), len(self.tokens)
        return values[:count], [value == 1 for value in values[count : 2 * count]], list(map(bool, values[2 * count :]))


def draw_on_device(logits: Tensor, rows: Sequence[Row], flags: Tensor) -> Drawn:
    """Draw one token for each of ``rows`` from ``logits [n, vocab]``, float32. ``flags [t]``: to be copied, too."""
    largest, tokens = logits.max(-1)
    sound = torch.isfinite(largest)
    drawn = [place for place, row in enumerate(rows) if row.sampling is not None and row.sampling.temperature > 0]
    for places, filters in _together(drawn, rows, logits):
        numbers = on_device(_numbers([rows[place] for place in places], places, logits.shape[1]), logits.device)
        index, temperatures, least, top_k, top_p, *limbs = numbers.view(_COLUMNS + _LIMBS, len(places))
        own = logits.index_select(0, index)
        weights = whole_weights(own, largest.index_select(0, index)[:, None], temperatures.view(torch.float64))
        weights.masked_fill_(weights < least[:, None], 0)
        if filters:
            weights *= _likeliest(own, weights, top_k, top_p.view(torch.float64))
        tokens = tokens.index_copy(0, index, _pick(weights, limbs))
    together = torch.cat([tokens, sound.long(), flags.long()])
    if not logits.is_cuda:
        return Drawn(tokens=tokens, copy=together, event=None)
    copy = torch.empty(together.shape, dtype=together.dtype, pin_memory=True)
    copy.copy_(together, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(logits.device))
    return Drawn(tokens=tokens, copy=copy, event=event)


def _together(drawn: Sequence[int], rows: Sequence[Row], logits: Tensor) -> Iterator[tuple[list[int], bool]]:
    """Rows that are drawn together, and whether tokens are left out by their rank or by their sum."""
    samplings = {place: own for place in drawn if (own := rows[place].sampling) is not None}
    for filters in (False, True):
        places = [place for place in drawn if is_filtered(samplings[place], logits.shape[1]) == filters]
        at_once = max(1, rows_at_once(logits) // (_SORTED if filters else 1))
        for first in range(0, len(places), at_once):
            yield places[first : first + at_once], filters


def _numbers(rows: Sequence[Row], places: Sequence[int], vocab: int) -> array[int]:
    """Row by row places, temperatures, least weights, ``top_k``, ``top_p``; then the lowest 16 random bits, the next.

    Of numbers with a fraction the bits.
    """
    samplings = [row.sampling for row in rows if row.sampling is not None]
    bits = [uniform_bits(own.seed, row.output_index) for own, row in zip(samplings, rows, strict=True)]
    numbers = array("q", places)
    numbers.extend(map(_bits, (own.temperature for own in samplings)))
    numbers.extend(map(least_weight, samplings))
    numbers.extend(top_k_of(own, vocab) for own in samplings)
    numbers.extend(map(_bits, (own.top_p for own in samplings)))
    for limb in range(_LIMBS):
        numbers.extend(value >> (_LIMB_BITS * limb) & 0xFFFF for value in bits)
    return numbers


def _bits(value: float) -> int:
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return int(bits)


def _likeliest(logits: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Which tokens are kept, ``[n, vocab]``, the lower id first among equals.

    `sampling` looks at some candidates and asks whether they were enough: here nobody is to wait for an answer.
    """
    ranks = logits.sort(descending=True, stable=True).indices
    so_far = weights.gather(1, ranks).cumsum(-1)
    kept = how_many(so_far, so_far.gather(1, top_k[:, None] - 1)[:, 0], top_k, top_p)
    is_kept = torch.arange(weights.shape[1], device=weights.device) < kept[:, None]
    return torch.zeros_like(weights, dtype=torch.bool).scatter(1, ranks, is_kept)


def _pick(weights: Tensor, limbs: Sequence[Tensor]) -> Tensor:
    """The first place at which the cumulative weights exceed ``random * total >> 64``, as `sampling` has it.

    The product has up to 122 bits; limb by limb, and the total in two halves, no part of it has more than 63.
    """
    so_far = weights.cumsum(-1)
    total = so_far[:, -1]
    high, low = total >> 32, total & 0xFFFFFFFF
    mark = torch.zeros_like(total)
    for limb in limbs:
        mark = ((limb * high) << 16) + ((mark + limb * low) >> 16)
    # Of logits that are not sound nothing is right, but it must be a token all the same: a step reads it.
    return torch.searchsorted(so_far, mark[:, None], right=True)[:, 0].clamp_(max=weights.shape[1] - 1)
