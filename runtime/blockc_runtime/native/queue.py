"""Kernels that wait for each other: what Python does for a whole launch first, and then all kernels in one call.

In: calls of kernels, in the order in which they are to run. Out: the same results, later: within `together` nothing
that a kernel writes is there before `settle`, or the end. Between two kernels that stream through memory Python's own
code and data are in no cache, and every call costs two to four times what it costs where they are.
Invariant: kernels run in order, and what they read and write lives until they have; of that there is so much at most,
and more runs them. Whoever reads with other functions
than kernels settles first: programs before ops that cannot wait (`executor.waiting`), ops before torch's functions.
"""

from __future__ import annotations

import struct
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_float
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeVar

from torch import Tensor

from blockc_runtime.native.library import SIGNATURES, Kernels, loaded

T = TypeVar("T")
# Of what waiting kernels read and write, which would be freed otherwise and is in no plan's memory. A step of many
# tokens has some kernels wait even so, and Python takes little of its time.
_MOST_BYTES = 16 << 20
# Times that while calls are recorded, which happens once: one value is counted with each call that has it.
_RECORDED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Calls as words, and what they read and write."""

    words: array[int]
    held: list[object]


class _Queue:
    """Calls as words: the number of a kernel, then its arguments."""

    def __init__(self, own: Kernels) -> None:
        self._own = own
        self._words: list[int] = []
        self._held: list[object] = []
        self._nbytes = 0
        self._room = 1
        self.settled = 0

    def add(self, name: str, held: object, args: tuple[Any, ...]) -> None:
        """A call; ``held``: what lives until it has run."""
        words = [arg or 0 for arg in args]
        for place in _floats(name):
            words[place] = _bits(words[place])
        self._words.append(self._own.queued[name])
        self._words += words
        self._held.append(held)
        self._nbytes += sum(own.nbytes for own in tensors_of(held))
        if self._nbytes > self._room * _MOST_BYTES:
            self.settle()

    def settle(self) -> None:
        """Run what waits, and say so."""
        self.settled += 1
        self.run()

    def run(self) -> None:
        """All that wait, in order."""
        if not self._words:
            return
        words, self._words = array("q", self._words), []
        self._own.run(words.buffer_info()[0], len(words))
        self._held.clear()
        self._nbytes = 0

    def record(self, run: Callable[[], T]) -> tuple[T, Recorded | None]:
        """What ``run`` returns, and the calls that it left waiting; None if there was any that could not wait."""
        settled, words, held = self.settled, len(self._words), len(self._held)
        self._room = _RECORDED
        result = run()
        self._room = 1
        if self.settled > settled:
            return result, None
        return result, Recorded(words=array("q", self._words[words:]), held=self._held[held:])

    def repeat(self, words: list[int], held: object) -> None:
        """Calls that were recorded."""
        self._words += words
        self._held.append(held)


class _Of(threading.local):
    """A thread's queue, if its kernels wait."""

    queue: _Queue | None = None


_OF = _Of()


def call(name: str, held: object, *args: Any) -> None:
    """Run a kernel, or have it wait; ``held``: all that it reads and writes and that nobody else keeps."""
    queue = _OF.queue
    if queue is None:
        function: Callable[..., None] = getattr(loaded(), name)
        function(*args)
    else:
        queue.add(name, held, args)


def settle() -> None:
    """Run the kernels that wait."""
    if _OF.queue is not None:
        _OF.queue.settle()


def record(run: Callable[[], T]) -> tuple[T, Recorded | None]:
    """What ``run`` returns, and the calls of kernels that it left waiting; None where some did not wait."""
    return (run(), None) if _OF.queue is None else _OF.queue.record(run)


def repeat(words: list[int], held: object) -> None:
    """Have calls wait that were recorded, within `together`; ``held``: what lives until they have run."""
    assert _OF.queue is not None
    _OF.queue.repeat(words, held)


@contextmanager
def together() -> Iterator[None]:
    """Kernels that are called meanwhile may wait until the end. Those of a launch that fails do not run any more."""
    before, _OF.queue = _OF.queue, _Queue(loaded())
    try:
        yield
        _OF.queue.run()
    finally:
        _OF.queue = before


@contextmanager
def at_once() -> Iterator[None]:
    """Kernels do not wait meanwhile, for others than kernels read what they write."""
    settle()
    before, _OF.queue = _OF.queue, None
    try:
        yield
    finally:
        _OF.queue = before


def tensors_of(held: object) -> Iterator[Tensor]:
    """Those in it, however deep in tuples and lists."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, list | tuple):
        for own in held:
            yield from tensors_of(own)


@cache
def _floats(name: str) -> tuple[int, ...]:
    return tuple(place for place, kind in enumerate(SIGNATURES[name]) if kind is c_float)


@lru_cache(maxsize=1024)
def _bits(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])
