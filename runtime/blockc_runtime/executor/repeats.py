"""Blocks whose kernels were called before, for as many tokens: the same calls again, without what led to them.

In: blocks that do nothing but call kernels that wait (`waiting.py`), and the tensors in which one step differs from
another. Out: what the blocks yield. Memory between the kernels is that of the first time; addresses of what differs are
put in its place. Invariant: a repetition equals the blocks run op by op, bit for bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blockc_runtime.native.queue import Recorded, record, repeat, tensors_of

# Of all that is kept for repetitions. Models whose steps need more spend their time in kernels anyway.
_MOST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calls:
    """``places``: of a word, and the tensor of a step whose address belongs there; the last one: what comes out."""

    recorded: Recorded
    places: tuple[tuple[int, int], ...]
    shape: torch.Size
    nbytes: int

    def again(self, given: Sequence[Tensor]) -> Tensor:
        out = given[0].new_empty(self.shape)
        addresses = [own.data_ptr() for own in (*given, out)]
        words = self.recorded.words[:]
        for place, which in self.places:
            words[place] = addresses[which]
        repeat(words, (self.recorded.held, given, out))
        return out


class Repeats:
    """What is known of a model's blocks; what was not used for longest goes first."""

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, _Calls] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Of the memory between kernels."""
        return sum(calls.nbytes for calls in self._known.values())

    def run(self, key: Hashable, given: Sequence[Tensor], blocks: Callable[[], Tensor]) -> Tensor:
        """What ``blocks`` yield, of the dtype of the first tensor.

        ``given``: whatever they read that is not there for as long as the model; ``key``: all else in which steps
        differ.
        """
        calls = self._known.get(key)
        if calls is not None:
            self._known.move_to_end(key)
            return calls.again(given)
        out, recorded = record(blocks)
        calls = None if recorded is None else _calls(recorded, given, out)
        if calls is not None and calls.nbytes <= _MOST_BYTES:
            self._known[key] = calls
            while self.nbytes > _MOST_BYTES:
                self._known.popitem(last=False)
        return out


def _calls(recorded: Recorded, given: Sequence[Tensor], out: Tensor) -> _Calls | None:
    """None where the tensors of the step cannot be told apart by their addresses."""
    addresses = [own.data_ptr() for own in (*given, out)]
    which = {address: number for number, address in enumerate(addresses)}
    if len(which) < len(addresses) or 0 in which or not out.is_contiguous() or out.dtype != given[0].dtype:
        return None
    places = tuple((place, which[word]) for place, word in enumerate(recorded.words) if word in which)
    held = {own.data_ptr(): own.nbytes for own in tensors_of(recorded.held)}
    return _Calls(recorded=recorded, places=places, shape=out.shape, nbytes=sum(held.values()))
