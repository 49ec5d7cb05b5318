"""The process that reads grammars for one tokenizer: which tokens may come next, for the engine that asks.

llguidance holds the interpreter's lock while it indexes a vocabulary (1 to 2 s for 150,000 tokens), so that a thread of
the engine would stop every step. Here it stops nobody but who waits for it.

In: on stdin one frame with the tokenizer's files, then one for each step with grammars. Out: on stdout a frame that
says that the vocabulary is indexed, then masks. A frame is a big-endian 32-bit length and msgpack. Invariant: a mask is
a function of grammar and outputs alone. What is kept of a request between two steps only saves reading its outputs
again: after a preemption or in a new process the state is built from the tokens. It ends when stdin does, which is when
the engine ends.
"""

from __future__ import annotations

import struct
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgpack

from blockc_runtime.structured import LIMITS, LLMatcher, LLTokenizer
from blockc_runtime.tokenizer_files import load_tokenizer

# Of one row: request, grammar, outputs so far. Of its answer: the mask's bits, and whether the output may end here; or
# in place of both why there is none.
Asked = tuple[str, str, Sequence[int]]
Answered = tuple[bytes, bool] | str

_COMPILED = 64  # grammars kept
_MATCHERS = 1024  # requests kept
_MESSAGE_CHARS = 200
_HEADER = struct.Struct(">I")


def write_frame(stream: BinaryIO, value: Any) -> None:
    """Write one frame. Raises OSError if nobody reads."""
    payload = msgpack.packb(value, use_bin_type=True)
    stream.write(_HEADER.pack(len(payload)) + payload)
    stream.flush()


def read_frame(stream: BinaryIO) -> Any:
    """Read one frame. Raises EOFError at the end of the stream."""
    header = stream.read(_HEADER.size)
    payload = stream.read(_HEADER.unpack(header)[0]) if len(header) == _HEADER.size else b""
    if not payload:
        raise EOFError
    return msgpack.unpackb(payload, use_list=False)


@dataclass(slots=True)
class _Progress:
    """A matcher that has read ``outputs``."""

    matcher: LLMatcher
    grammar: str
    outputs: list[int]


class Matchers:
    """All grammars in use with one tokenizer."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self._tokenizer = tokenizer
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._progress: OrderedDict[str, _Progress] = OrderedDict()

    def answer(self, request: str, grammar: str, outputs: Sequence[int]) -> Answered:
        """Return what may follow ``outputs``, or why nothing can."""
        try:
            matcher = self._matcher(request, grammar, outputs)
        except Exception as error:  # whatever is wrong with one request's grammar is that request's
            return f"the grammar cannot be used: {type(error).__name__}: {error}"[:_MESSAGE_CHARS]
        if matcher is None:
            return "the output does not follow its grammar"
        bits = matcher.compute_bitmask()
        if matcher.is_error():
            return f"the grammar cannot be followed: {matcher.get_error()}"[:_MESSAGE_CHARS]
        return bits, matcher.is_accepting()

    def _matcher(self, request: str, grammar: str, outputs: Sequence[int]) -> LLMatcher | None:
        """Return the state after ``outputs``; None if they do not follow the grammar."""
        known = self._progress.get(request)
        if known is None or known.grammar != grammar or list(outputs[: len(known.outputs)]) != known.outputs:
            known = _Progress(self._start(grammar), grammar, [])
            self._progress[request] = known
            if len(self._progress) > _MATCHERS:
                self._progress.popitem(last=False)
        self._progress.move_to_end(request)
        fresh = list(outputs[len(known.outputs) :])
        if fresh and not known.matcher.consume_tokens(fresh):
            del self._progress[request]
            return None
        known.outputs += fresh
        return known.matcher

    def _start(self, grammar: str) -> LLMatcher:
        """Return a matcher that has read nothing. Raises ValueError for what is no grammar."""
        if grammar not in self._compiled:
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
            if matcher.is_error():
                raise ValueError(matcher.get_error())
            self._compiled[grammar] = matcher
            if len(self._compiled) > _COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return self._compiled[grammar].deep_copy()


def main() -> int:
    """Index, then answer until stdin ends."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    try:
        files, vocab, ends = read_frame(source)
        try:
            text = load_tokenizer(files)
            size = max(vocab, text.get_vocab_size(with_added_tokens=True))
            tokenizer = LLTokenizer(text.to_str(), n_vocab=size, eos_token=list(ends) or None)
        except Exception as error:
            write_frame(sink, f"{type(error).__name__}: {error}"[:_MESSAGE_CHARS])
            return 1
        write_frame(sink, list(tokenizer.eos_tokens))
        matchers = Matchers(tokenizer)
        while True:
            write_frame(sink, [matchers.answer(*asked) for asked in read_frame(source)])
    except (EOFError, OSError):
        return 0


if __name__ == "__main__":
    sys.exit(main())
