"""Tokens drawn where the logits are: the next step reads them there, and the host may learn of them later.

In: logits of rows that are drawn without looking at anything else. Out: tokens on the device, and a copy on its way to
the host. Invariant: the tokens are those of `sampling.sample`; nothing here waits for the device but `Drawn.found`.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blockc_runtime.ops.transfer import on_device
from blockc_runtime.sampling import is_filtered, rows_at_once, uniform_bits, whole_weights
from blockc_runtime.step import Row

_LIMBS, _LIMB_BITS = 4, 16


def draws_alone(row: Row, vocab: int) -> bool:
    """Whether a row's token follows from its logits, temperature, seed and index alone, and nothing else is asked."""
    own = row.sampling
    return (
        own is not None
        and row.samples == row.logits == 1
        and own.steering is None
        and own.logprobs is None
        and not is_filtered(own, vocab)
        and own.min_p == 0
    )


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
    at_once = rows_at_once(logits)
    for first in range(0, len(drawn), at_once):
        places = drawn[first : first + at_once]
        numbers = on_device(_numbers([rows[place] for place in places], places), logits.device)
        index = numbers[: len(places)]
        temperatures = numbers[len(places) : 2 * len(places)].view(torch.float64)
        limbs = numbers[2 * len(places) :].view(_LIMBS, len(places))
        weights = whole_weights(logits.index_select(0, index), largest.index_select(0, index)[:, None], temperatures)
        tokens = tokens.index_copy(0, index, _pick(weights, limbs))
    together = torch.cat([tokens, sound.long(), flags.long()])
    if not logits.is_cuda:
        return Drawn(tokens=tokens, copy=together, event=None)
    copy = torch.empty(together.shape, dtype=together.dtype, pin_memory=True)
    copy.copy_(together, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(logits.device))
    return Drawn(tokens=tokens, copy=copy, event=event)


def _numbers(rows: Sequence[Row], places: Sequence[int]) -> array[int]:
    """Places; temperatures, bit by bit; the lowest 16 random bits of each row, the next 16, and so on."""
    samplings = [row.sampling for row in rows if row.sampling is not None]
    bits = [uniform_bits(own.seed, row.output_index) for own, row in zip(samplings, rows, strict=True)]
    numbers = array("q", places)
    numbers.extend(struct.unpack("<q", struct.pack("<d", own.temperature))[0] for own in samplings)
    for limb in range(_LIMBS):
        numbers.extend(value >> (_LIMB_BITS * limb) & 0xFFFF for value in bits)
    return numbers


def _pick(weights: Tensor, limbs: Tensor) -> Tensor:
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
