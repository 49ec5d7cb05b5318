"""Grammars: which tokens an output may go on with.

In: a row's grammar and its outputs so far. Out: a mask of tokens. Invariant: the mask is a function of grammar and
outputs alone. What is kept of a request between two steps only saves reading its outputs again: after a preemption or
in a new engine the state is built from the tokens.

llguidance reads the grammars, under limits that keep one request from holding up a step of everybody's. The server has
refused what is no grammar (`server/structured.py`); one that fails here all the same is a fault of its row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blockc.plan import ExecutionPlan
from blockc.zoo import Zoo
from blockc_runtime.step import Row
from blockc_runtime.structured import LIMITS, LLMatcher, LLTokenizer
from blockc_runtime.tokenizer_files import SPECIAL_TOKENS_MAP, TOKENIZER, TOKENIZER_CONFIG, load_tokenizer

_COMPILED = 64  # grammars kept
_MATCHERS = 1024  # requests kept
_MESSAGE_CHARS = 200


@dataclass(slots=True)
class _Progress:
    """A matcher that has read ``outputs``."""

    matcher: LLMatcher
    grammar: str
    outputs: list[int]


class Grammars:
    """All grammars in use. Implements `draw.Masks`."""

    def __init__(self, plan: ExecutionPlan, zoo: Zoo) -> None:
        self._plan = plan
        self._zoo = zoo
        self._tokenizers: dict[tuple[str | None, ...], LLTokenizer] = {}
        self._compiled: OrderedDict[tuple[int, str], LLMatcher] = OrderedDict()
        self._progress: OrderedDict[str, _Progress] = OrderedDict()

    def allowed(self, row: Row, outputs: Sequence[int], vocab: int) -> Tensor | str:
        """Return the tokens ``[vocab]`` that may follow ``outputs``, or why none can."""
        assert row.sampling is not None
        assert row.sampling.steering is not None
        steering = row.sampling.steering
        assert steering.grammar is not None
        try:
            tokenizer = self._tokenizer(row.chain, vocab)
            matcher = self._matcher(row.request, tokenizer, steering.grammar, outputs)
        except Exception as error:  # whatever is wrong with one request's grammar is that request's
            return f"the grammar cannot be used: {type(error).__name__}: {error}"[:_MESSAGE_CHARS]
        if matcher is None:
            return "the output does not follow its grammar"
        bits = matcher.compute_bitmask()
        if matcher.is_error():
            return f"the grammar cannot be followed: {matcher.get_error()}"[:_MESSAGE_CHARS]
        mask = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little", count=vocab).astype(np.bool_)
        # The end is for the request to name: a chain may know other tokens than its generation config.
        mask[[token for token in tokenizer.eos_tokens if token < vocab]] = False
        if matcher.is_accepting():
            mask[[token for token in steering.stop_token_ids if token < vocab]] = True
        return torch.from_numpy(mask)

    def _matcher(self, request: str, tokenizer: LLTokenizer, grammar: str, outputs: Sequence[int]) -> LLMatcher | None:
        """Return the state after ``outputs``; None if they do not follow the grammar."""
        known = self._progress.get(request)
        if known is None or known.grammar != grammar or list(outputs[: len(known.outputs)]) != known.outputs:
            known = _Progress(self._start(tokenizer, grammar), grammar, [])
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

    def _start(self, tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
        """Return a matcher that has read nothing. Raises ValueError for what is no grammar."""
        key = (id(tokenizer), grammar)
        if key not in self._compiled:
            matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
            if matcher.is_error():
                raise ValueError(matcher.get_error())
            self._compiled[key] = matcher
            if len(self._compiled) > _COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return self._compiled[key].deep_copy()

    def _tokenizer(self, chain: int, vocab: int) -> LLTokenizer:
        """Return the tokenizer of a chain, one for all chains with equal files."""
        assets: Mapping[str, str] = self._plan.chains[chain].assets
        names = (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP)
        ends = self._plan.chains[chain].stop_token_ids
        key = (*(assets.get(name) for name in names), f"{vocab} {ends}")
        if key not in self._tokenizers:
            tokenizer = load_tokenizer({name: self._zoo.blob(assets[name]) for name in names if name in assets})
            size = max(vocab, tokenizer.get_vocab_size(with_added_tokens=True))
            self._tokenizers[key] = LLTokenizer(tokenizer.to_str(), n_vocab=size, eos_token=list(ends) or None)
        return self._tokenizers[key]
