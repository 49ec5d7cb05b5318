"""``/v1/completions``: how its answers are worded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from blockc_runtime.server import sse
from blockc_runtime.server.choice import Choice
from blockc_runtime.server.errors import ApiError
from blockc_runtime.server.generation import Generation
from blockc_runtime.server.logprobs import completion_logprobs
from blockc_runtime.server.output import Delta
from blockc_runtime.server.schemas import CompletionBody
from blockc_runtime.server.sse import to_json

_GOES_ON = '"finish_reason":null,"stop_reason":null'


class CompletionFormat:
    """See `calls.Format`."""

    def __init__(self, generation: Generation, body: CompletionBody) -> None:
        self._vocabulary = generation.app.text.vocabulary
        self._with_logprobs = body.logprobs is not None
        self._with_ids = body.return_token_ids
        self._generation = generation
        choices = len(generation.requests) // generation.tries * generation.n
        self._offsets = [len(generation.echo_of(index)) for index in range(choices)]
        self._envelope = {
            "id": generation.id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": generation.app.model,
        }
        # Rendered once: the rest of a chunk is a few small values.
        self._head = to_json(self._envelope)[:-1] + ',"choices":[{"index":'

    def opening(self, index: int) -> bytes:
        """Return the prompt's text, if it is to be echoed: completions have no role."""
        echo = self._generation.echo_of(index)
        if not echo:
            return b""
        return self._render(index, echo, "null", _GOES_ON)

    def chunk(self, index: int, delta: Delta) -> bytes:
        """Return the event of a delta."""
        extra = ""
        if self._with_ids and delta.tokens:
            extra = f',"token_ids":{to_json(delta.tokens)}'
        if not (delta.text or delta.finish_reason or extra or self._with_logprobs):
            return b""
        logprobs = "null"
        if self._with_logprobs and delta.tokens:
            logprobs = to_json(self._logprobs(index, delta.tokens, delta))
        end = _GOES_ON
        if delta.finish_reason:
            end = f'"finish_reason":{to_json(delta.finish_reason)},"stop_reason":{to_json(delta.stop_reason)}'
        return self._render(index, delta.text, logprobs, end + extra)

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        """Return the event with the token counts."""
        return sse.event(to_json({**self._envelope, "choices": [], "usage": usage}))

    def whole(self, choices: Sequence[Choice], usage: dict[str, Any]) -> bytes:
        """Return the body of an answer given at once."""
        entries = [self._choice(index, choice) for index, choice in enumerate(choices)]
        return to_json({**self._envelope, "choices": entries, "usage": usage}).encode()

    def _render(self, index: int, text: str, logprobs: str, end: str) -> bytes:
        return f'data: {self._head}{index},"text":{to_json(text)},"logprobs":{logprobs},{end}}}]}}\n\n'.encode()

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "index": index,
            "text": self._generation.echo_of(index) + "".join(choice.texts),
            "logprobs": None,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if self._with_logprobs:
            entry["logprobs"] = self._whole_logprobs(index, choice)
        if self._with_ids:
            entry["token_ids"] = choice.tokens
            entry["prompt_token_ids"] = self._generation.prompt_of(index)
        return entry

    def _whole_logprobs(self, index: int, choice: Choice) -> dict[str, Any]:
        """Return those of the output, behind those of the prompt if it is echoed."""
        if not self._generation.echoes:
            return self._logprobs(index, choice.tokens, choice)
        prompt = self._generation.prompt_of(index)
        if len(choice.prompt_logprobs) != len(prompt) - 1:
            raise ApiError(500, "the engine failed: it did not score the prompt")
        logprobs = [None, *choice.prompt_logprobs, *choice.logprobs]
        return completion_logprobs([*prompt, *choice.tokens], logprobs, self._vocabulary, 0)

    def _logprobs(self, index: int, tokens: Sequence[int], source: Delta | Choice) -> dict[str, Any]:
        offset = self._offsets[index]
        result = completion_logprobs(tokens, source.logprobs, self._vocabulary, offset)
        self._offsets[index] = offset + sum(map(len, result["tokens"]))
        return result
