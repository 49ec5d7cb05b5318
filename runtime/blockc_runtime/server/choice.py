"""One whole output, and which outputs are the likeliest.

In: the deltas of an output, in order. Out: its text, tokens and log probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from blockc_runtime.request import FinishReason, TokenLogprob
from blockc_runtime.server.output import Delta


@dataclass(slots=True)
class Choice:
    """A whole output, put together from its deltas.

    ``prompt_logprobs``: of its prompt's tokens but the first, where they were asked for.
    """

    texts: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        self.texts.append(delta.text)
        self.tokens.extend(delta.tokens)
        self.logprobs.extend(delta.logprobs)
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason


def likeliest(choices: Sequence[Choice], count: int) -> list[Choice]:
    """Return the ``count`` outputs with the highest log probability a token, best first: OpenAI's ``best_of``.

    Among equals the one that was tried first.
    """
    return sorted(choices, key=_mean_logprob, reverse=True)[:count]


def _mean_logprob(choice: Choice) -> float:
    if not choice.logprobs:
        return float("-inf")
    return sum(entry.logprob for entry in choice.logprobs) / len(choice.logprobs)
