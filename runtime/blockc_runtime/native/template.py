"""Calls of kernels that were recorded for some tokens, as those for any number of them.

In: words of calls, and the tensors in which one step differs from another. Out: a :class:`Template`. Every word is
``fixed + tokens * per_token + value``, of which the value is one of the step's: an address, or a number that stands
behind one. What one kernel leaves for the next gets a place in memory that is given anew each time; those that are not
needed at the same time may have the same.
Invariant: filled in for the tokens and tensors of which it was made, it is the same calls.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from ctypes import c_void_p
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from blockc_runtime.native.library import SIGNATURES, Tokens, Written, loaded
from blockc_runtime.native.queue import Recorded, tensors_of

# At which torch's own memory begins, too.
_ALIGNED = 64
_Words = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
# Values by number: 0, where memory between kernels begins, and from here on a step's own.
_BETWEEN, _OWN = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """A tensor of a step, and the numbers that stand behind its address in every call."""

    tensor: Tensor
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """``between``: bytes of memory between kernels for each token. ``width``: of what comes out.

    ``held``: what is read each time.
    """

    fixed: _Words
    per_token: _Words
    source: _Words
    between: int
    width: int
    held: tuple[object, ...]

    def filled(self, tokens: int, given: Sequence[Operand], out: Tensor, between: int) -> list[int]:
        """Words of the calls on these; ``between``: the address of that memory."""
        values = np.array([0, between, *_values((*given, Operand(tensor=out)))], dtype=np.int64)
        words: list[int] = (self.fixed + tokens * self.per_token + values[self.source]).tolist()
        return words


@dataclass(slots=True, kw_only=True)
class _Between:
    """What one kernel leaves for another: bytes for each token, and the first and the last call that has it."""

    size: int
    first: int
    last: int
    uses: list[tuple[int, int]] = field(default_factory=list)  # of a word, and how far behind the beginning


def template_of(recorded: Recorded, tokens: int, given: Sequence[Operand], out: Tensor) -> Template | None:
    """``out``: ``[1, T, width]``, what the last of the calls writes. None where calls are not as all words are here."""
    operands = *given, Operand(tensor=out)
    number_of = _numbers(operands)
    if number_of is None or out.shape != (1, tokens, out.shape[-1]) or not out.is_contiguous():
        return None
    words = recorded.words
    fixed = np.array(words, dtype=np.int64)
    per_token, source = np.zeros_like(fixed), np.zeros_like(fixed)
    memory = _Memory(recorded.held, operands)
    found: dict[int, _Between] = {}
    for call, place, kind in _arguments(words):
        word = words[place]
        if kind is Tokens:
            if word % tokens:
                return None
            fixed[place], per_token[place] = 0, word // tokens
        elif not word or kind not in (c_void_p, Written):
            continue
        elif word in number_of:
            first, numbers = number_of[word]
            stop = place + 1 + len(numbers)
            if tuple(words[place + 1 : stop]) != numbers:
                return None
            fixed[place:stop], source[place:stop] = 0, np.arange(first, first + stop - place)
        else:
            start, nbytes = memory.of(word)
            if start in memory.steps:
                return None
            if kind is Written and start not in found:
                if not start or nbytes % tokens:
                    return None
                found[start] = _Between(size=nbytes // tokens, first=call, last=call)
            if start in found:
                found[start].last = call
                found[start].uses.append((place, word - start))
    size = _lay(list(found.values()), fixed, per_token, source)
    if size is None:
        return None
    held = tuple(own for own in _leaves(recorded.held) if not isinstance(own, Tensor) or _start(own) not in found)
    return Template(fixed=fixed, per_token=per_token, source=source, between=size, width=out.shape[-1], held=held)


def _lay(parts: Sequence[_Between], fixed: _Words, per_token: _Words, source: _Words) -> int | None:
    """Give each a place, and change the words that name it; bytes of all for each token."""
    size = 0
    there: list[tuple[int, int, int]] = []  # begin, end and last call
    for part in parts:
        there = sorted(own for own in there if own[2] >= part.first)
        need, begin = -(-part.size // _ALIGNED) * _ALIGNED, 0
        for taken, end, _ in there:
            if taken - begin >= need:
                break
            begin = max(begin, end)
        there.append((begin, begin + need, part.last))
        size = max(size, begin + need)
        for place, inside in part.uses:
            if inside >= part.size:  # of another token than the first
                return None
            fixed[place], per_token[place], source[place] = inside, begin, _BETWEEN
    return size


class _Memory:
    """Which tensor an address belongs to. ``steps``: where those of a step begin."""

    def __init__(self, held: object, operands: Sequence[Operand]) -> None:
        self.steps = {_start(own.tensor) for own in operands}
        storages = [own.untyped_storage() for own in tensors_of(held)]
        storages += [own.tensor.untyped_storage() for own in operands]
        self._sizes = {own.data_ptr(): own.nbytes() for own in storages}
        self._starts = sorted(self._sizes)

    def of(self, address: int) -> tuple[int, int]:
        """Where it begins, and its bytes; 0 and 0: it is there as long as the model."""
        place = bisect_right(self._starts, address) - 1
        start = self._starts[place] if place >= 0 else 0
        nbytes = self._sizes.get(start, 0)
        return (start, nbytes) if address < start + nbytes else (0, 0)


def _numbers(operands: Sequence[Operand]) -> dict[int, tuple[int, tuple[int, ...]]] | None:
    """By address the number of its value, and the numbers behind it. None where two tensors have one address."""
    found: dict[int, tuple[int, tuple[int, ...]]] = {}
    number = _OWN
    for own in operands:
        found[own.tensor.data_ptr()] = number, own.numbers
        number += 1 + len(own.numbers)
    return found if len(found) == len(operands) and 0 not in found else None


def _values(operands: Sequence[Operand]) -> Iterator[int]:
    for own in operands:
        yield own.tensor.data_ptr()
        yield from own.numbers


def _arguments(words: Sequence[int]) -> Iterator[tuple[int, int, type]]:
    """Of each argument the number of its call, its place among the words, and what it is."""
    names = {number: name for name, number in loaded().queued.items()}
    place, call = 0, 0
    while place < len(words):
        kinds = SIGNATURES[names[words[place]]]
        yield from ((call, place + 1 + i, kind) for i, kind in enumerate(kinds))
        place, call = place + 1 + len(kinds), call + 1


def _start(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _leaves(held: object) -> Iterator[object]:
    if isinstance(held, list | tuple):
        for own in held:
            yield from _leaves(own)
    else:
        yield held
