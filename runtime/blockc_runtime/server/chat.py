"""``/v1/chat/completions``: how its answers are worded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from blockc_runtime.server import sse
from blockc_runtime.server.choice import Choice
from blockc_runtime.server.generation import Generation
from blockc_runtime.server.logprobs import chat_logprobs
from blockc_runtime.server.output import Delta
from blockc_runtime.server.schemas import ChatBody
from blockc_runtime.server.sse import to_json


class ChatFormat:
    """See `calls.Format`."""

    def __init__(self, generation: Generation, body: ChatBody) -> None:
        self._vocabulary = generation.app.text.vocabulary
        self._with_logprobs = body.logprobs
        self._with_ids = body.return_token_ids
        self._prompt = generation.prompt_of(0)
        self._envelope = {
            "id": generation.id,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": generation.app.model,
        }
        self._chunk_envelope = {**self._envelope, "object": "chat.completion.chunk"}
        # Rendered once: the rest of a chunk is a few small values.
        self._head = to_json(self._chunk_envelope)[:-1] + ',"choices":[{"index":'

    def opening(self, index: int) -> bytes:
        """Return the event that names the role."""
        delta = '{"role":"assistant","content":""}'
        extra = f',"prompt_token_ids":{to_json(self._prompt)}' if self._with_ids else ""
        return self._render(index, delta, "null", '"finish_reason":null' + extra)

    def chunk(self, index: int, delta: Delta) -> bytes:
        """Return the event of a delta."""
        extra = ""
        if self._with_ids and delta.tokens:
            extra = f',"token_ids":{to_json(delta.tokens)}'
        if not (delta.text or delta.finish_reason or extra or self._with_logprobs):
            return b""
        logprobs = "null"
        if self._with_logprobs and delta.tokens:
            entries = chat_logprobs(delta.tokens, delta.logprobs, self._vocabulary)
            logprobs = to_json(entries)
        content = f'{{"content":{to_json(delta.text)}}}' if delta.text else "{}"
        end = f'"finish_reason":{to_json(delta.finish_reason)}'
        if delta.finish_reason:
            end += f',"stop_reason":{to_json(delta.stop_reason)}'
        return self._render(index, content, logprobs, end + extra)

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        """Return the event with the token counts."""
        return sse.event(to_json({**self._chunk_envelope, "choices": [], "usage": usage}))

    def whole(self, choices: Sequence[Choice], usage: dict[str, Any]) -> bytes:
        """Return the body of an answer given at once."""
        entries = [self._choice(index, choice) for index, choice in enumerate(choices)]
        return to_json({**self._envelope, "choices": entries, "usage": usage}).encode()

    def _render(self, index: int, delta: str, logprobs: str, end: str) -> bytes:
        return (f'data: {self._head}{index},"delta":{delta},"logprobs":{logprobs},{end}}}]}}\n\n').encode()

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "index": index,
            "message": {"role": "assistant", "content": "".join(choice.texts), "refusal": None},
            "logprobs": None,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if self._with_logprobs:
            entry["logprobs"] = chat_logprobs(choice.tokens, choice.logprobs, self._vocabulary)
        if self._with_ids:
            entry["token_ids"] = choice.tokens
            entry["prompt_token_ids"] = self._prompt
        return entry
