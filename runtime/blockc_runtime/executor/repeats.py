"""Blocks whose kernels were called before, for however many tokens: the same calls again, without what led to them.

In: blocks that do nothing but call kernels that wait (`waiting.py`), and the tensors in which one step differs from
another. Out: what the blocks yield. Where a call stands for a number of tokens, or for an address that differs, this
step's is put in its place; what one kernel leaves for the next lies in memory that all repetitions have in common.
Invariant: a repetition equals the blocks run op by op, bit for bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from blockc_runtime.native.queue import record, repeat
from blockc_runtime.native.template import Operand, Template, template_of

# Of memory between kernels. Steps that need more spend their time in kernels anyway.
_MOST_BYTES = 16 << 20
# Of lists of calls, of some hundred kB each.
_MOST = 64


class Repeats:
    """What is known of a model's blocks; what was not used for longest goes first."""

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, Template | None] = OrderedDict()
        self._between = torch.empty(0, dtype=torch.uint8)

    @property
    def nbytes(self) -> int:
        """Of the memory between kernels."""
        return self._between.nbytes

    def run(self, key: Hashable, tokens: int, given: Sequence[Operand], blocks: Callable[[], Tensor]) -> Tensor:
        """What ``blocks`` yield for so many tokens, ``[1, T, F]`` of the dtype of the first tensor.

        ``given``: whatever they read that is not there for as long as the model; ``key``: all else in which steps
        differ.
        """
        if key not in self._known:
            return self._first(key, tokens, given, blocks)
        self._known.move_to_end(key)
        template = self._known[key]
        if template is None or template.between * tokens > _MOST_BYTES:
            return blocks()
        if template.between * tokens > self.nbytes:
            self._between = torch.empty(min(2 * template.between * tokens, _MOST_BYTES), dtype=torch.uint8)
        out = given[0].tensor.new_empty((1, tokens, template.width))
        words = template.filled(tokens, given, out, self._between.data_ptr())
        repeat(words, (template.held, [own.tensor for own in given], out, self._between))
        return out

    def _first(self, key: Hashable, tokens: int, given: Sequence[Operand], blocks: Callable[[], Tensor]) -> Tensor:
        """Run them op by op, and keep the calls; None where they are none to be kept."""
        out, recorded = record(blocks)
        if recorded is None:
            return out  # some did not wait: perhaps for so many tokens only
        fits = out.dtype == given[0].tensor.dtype
        self._known[key] = template_of(recorded, tokens, given, out) if fits else None
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
        return out
