"""``/v1/classify``: scores of classes for texts or their tokens, worded as vLLM words them, with the scores themselves.

``probs`` are what transformers' text classification makes of the scores where nothing else is asked of it: their
softmax, of a single class its sigmoid. ``logits`` are the scores as the model yields them: rewards, or the input of
whatever activation the model was trained for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.types import Send

from blockc_runtime.request import EndEvent
from blockc_runtime.server.arrivals import Arrival
from blockc_runtime.server.errors import ApiError
from blockc_runtime.server.response import CallResponse, send_json
from blockc_runtime.server.sse import to_json


class ScoresResponse(CallResponse):
    """The response to a call for scores, given when all texts have theirs."""

    async def _answer(self, send: Send, arrivals: list[Arrival]) -> None:
        ends = await self._ends(arrivals)
        if len(ends) == len(self._index):  # else the client left; nobody reads an answer
            await send_json(send, to_json(self._body(ends)).encode())

    def _body(self, ends: Mapping[int, EndEvent]) -> dict[str, Any]:
        submission = self._submission
        prompt = submission.prompt_tokens
        return {
            "id": submission.id,
            "object": "list",
            "created": int(time.time()),
            "model": submission.app.model,
            "data": [self._entry(index, ends[index].scores) for index in sorted(ends)],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": 0,
                "total_tokens": prompt,
                "prompt_tokens_details": {"cached_tokens": sum(end.cached_tokens for end in ends.values())},
            },
        }

    def _entry(self, index: int, scores: Sequence[float]) -> dict[str, Any]:
        """Of one text: its class, or the class of each of its tokens."""
        app, width = self._submission.app, len(self._submission.app.labels)
        tokens = self._submission.requests[index].prompt
        if len(scores) != width * (len(tokens) if app.each_token else 1):
            raise ApiError(500, "the engine failed: it gave no scores")
        if not app.each_token:
            return {"index": index, **_scored(scores, app.labels), "num_classes": width}
        text = app.text.vocabulary.token_text
        return {
            "index": index,
            "tokens": [
                {"id": token, "text": text(token), **_scored(scores[place * width :][:width], app.labels)}
                for place, token in enumerate(tokens)
            ],
            "num_classes": width,
        }


def _scored(scores: Sequence[float], labels: Sequence[str]) -> dict[str, Any]:
    return {
        "label": labels[max(range(len(scores)), key=scores.__getitem__)],
        "probs": probabilities(scores),
        "logits": list(scores),
    }


def probabilities(scores: Sequence[float]) -> list[float]:
    """The softmax of scores; of a single one its sigmoid. They are finite."""
    others = scores if len(scores) > 1 else (*scores, 0.0)
    most = max(others)
    weights = [math.exp(score - most) for score in others]
    return [weight / sum(weights) for weight in weights[: len(scores)]]
