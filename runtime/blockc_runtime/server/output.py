"""One sequence's tokens to what its client sees of them.

In: token events of one request, in order, and its end. Out: `Delta`: the text, tokens and log
probabilities to show now, and at last why it ended. Invariant: the deltas joined do not depend on
how the tokens were grouped into events; no part of a stop string is shown and then taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockc_runtime.request import EndEvent, FinishReason, TokenLogprob, TokensEvent
from blockc_runtime.server.detokenize import Vocabulary
from blockc_runtime.server.stop_strings import StopStrings


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """How a client wants to see its output. ``stop_token_ids``: those that end it in the engine.

    Stop strings are looked for behind the first ``min_tokens`` tokens. ``is_silent``: nothing of the output is asked
    for, only its prompt. ``shown``: special tokens that are text all the same.
    """

    stops: tuple[str, ...]
    stop_token_ids: frozenset[int]
    eos_token_ids: frozenset[int]
    include_stop: bool
    skip_special_tokens: bool
    min_tokens: int = 0
    is_silent: bool = False
    shown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What there is to show. ``finish_reason`` set: the last one.

    ``stop_reason``: the stop string or stop token that ended it; None for the model's own end.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


class Output:
    """The state of one sequence."""

    def __init__(self, vocabulary: Vocabulary, options: OutputOptions) -> None:
        self._options = options
        self._text = vocabulary.detokenizer(skip_special_tokens=options.skip_special_tokens, shown=options.shown)
        self._stops = StopStrings(options.stops, keep=options.include_stop)
        self._last_token: int | None = None
        self.token_count = 0
        self.cached_tokens = 0
        self.finished = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found: the engine need not go on."""
        return self._stops.found is not None

    def feed(self, event: TokensEvent) -> Delta:
        """Take tokens in. Those behind a stop string are dropped."""
        if self._options.is_silent:
            return Delta(text="", tokens=(), logprobs=())
        if not self._options.stops:
            self.token_count += len(event.tokens)
            return Delta(text=self._decode(event.tokens), tokens=event.tokens, logprobs=event.logprobs)
        text, count = self._decode_until_stop(event.tokens)
        self.token_count += count
        self.finished = self.stopped
        return Delta(
            text=text,
            tokens=event.tokens[:count],
            logprobs=event.logprobs[:count],
            finish_reason="stop" if self.stopped else None,
            stop_reason=self._stops.found,
        )

    def end(self, event: EndEvent) -> Delta:
        """Take the end in; show what was held back."""
        self.finished = True
        self.cached_tokens = event.cached_tokens
        if self._options.is_silent:
            reason = "length" if event.reason == "stop" else event.reason
            return Delta(text="", tokens=(), logprobs=(), finish_reason=reason)
        text = self._stops.feed(self._text.finish())
        if self.stopped:
            return Delta(
                text=text,
                tokens=(),
                logprobs=(),
                finish_reason="stop",
                stop_reason=self._stops.found,
            )
        by_token = event.reason == "stop" and self._last_token not in self._options.eos_token_ids
        return Delta(
            text=text + self._stops.finish(),
            tokens=(),
            logprobs=(),
            finish_reason=event.reason,
            stop_reason=self._last_token if by_token else None,
        )

    def _decode_until_stop(self, tokens: Sequence[int]) -> tuple[str, int]:
        """Return the text to show and how many of the tokens it took."""
        shown = []
        for index, token in enumerate(tokens):
            text = self._decode((token,))
            early = self.token_count + index < self._options.min_tokens
            shown.append(text if early else self._stops.feed(text))
            if self.stopped:
                return "".join(shown), index + 1
        return "".join(shown), len(tokens)

    def _decode(self, tokens: Sequence[int]) -> str:
        self._last_token = tokens[-1] if tokens else self._last_token
        # Only the last token can be one that stopped the engine; it is a signal, not text.
        if self._last_token in self._options.stop_token_ids and not self._options.include_stop:
            tokens = tokens[:-1]
        return self._text.feed(tokens)
