"""Log probabilities in the two forms that OpenAI's routes give them.

In: tokens with their log probabilities. Out: plain JSON values. Invariant: every number is finite,
for JSON has no infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from blockc_runtime.request import TokenLogprob
from blockc_runtime.server.detokenize import Vocabulary

_LOWEST = -9999.0  # stands for minus infinity, as in OpenAI's own answers


def completion_logprobs(
    tokens: Sequence[int],
    logprobs: Sequence[TokenLogprob | None],
    vocabulary: Vocabulary,
    text_offset: int,
) -> dict[str, Any]:
    """Return four parallel lists. ``text_offset``: characters of all tokens before these.

    None: of the first token of a prompt, which nothing stands before.
    """
    texts = [vocabulary.token_text(token) for token in tokens]
    offsets = []
    for text in texts:
        offsets.append(text_offset)
        text_offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [None if entry is None else _finite(entry.logprob) for entry in logprobs],
        # The chosen token is always among them, likely or not.
        "top_logprobs": [
            None
            if entry is None
            else {
                text: _finite(entry.logprob),
                **{vocabulary.token_text(token): _finite(value) for token, value in entry.top},
            }
            for text, entry in zip(texts, logprobs, strict=True)
        ],
        "text_offset": offsets,
    }


def chat_logprobs(tokens: Sequence[int], logprobs: Sequence[TokenLogprob], vocabulary: Vocabulary) -> dict[str, Any]:
    """Return one entry a token, with its likeliest alternatives."""
    return {
        "content": [
            {
                **_entry(token, entry.logprob, vocabulary),
                "top_logprobs": [_entry(other, value, vocabulary) for other, value in entry.top],
            }
            for token, entry in zip(tokens, logprobs, strict=True)
        ]
    }


def _entry(token: int, logprob: float, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "token": vocabulary.token_text(token),
        "logprob": _finite(logprob),
        "bytes": list(vocabulary.token_bytes(token)),
    }


def _finite(value: float) -> float:
    return value if value > _LOWEST else _LOWEST  # also for NaN, which compares with nothing
