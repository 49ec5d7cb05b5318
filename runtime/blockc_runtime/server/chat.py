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
from blockc_runtime.server.tools import Part, ToolReader, read_whole

_GOES_ON = '"finish_reason":null'


class ChatFormat:
    """See `calls.Format`."""

    def __init__(self, generation: Generation, body: ChatBody) -> None:
        self._vocabulary = generation.app.text.vocabulary
        self._with_logprobs = body.logprobs
        self._with_ids = body.return_token_ids
        self._prompt = generation.prompt_of(0)
        self._tools = generation.tools
        self._readers = [ToolReader(generation.tools) for _ in generation.requests] if generation.tools else []
        self._calls = [0] * len(self._readers)
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
        return self._render(index, delta, "null", _GOES_ON + extra)

    def chunk(self, index: int, delta: Delta) -> bytes:
        """Return the event of a delta."""
        parts: list[Part] = [delta.text] if delta.text else []
        finish_reason: str | None = delta.finish_reason
        if self._readers:
            parts = self._readers[index].feed(delta.text)
            parts += self._readers[index].finish() if delta.finish_reason else []
        data = b""
        for part in parts[:-1] if len(parts) > 1 else ():
            data += self._render(index, self._content(index, part), "null", _GOES_ON)
        content = self._content(index, parts[-1]) if parts else "{}"
        if delta.finish_reason == "stop" and self._readers and self._calls[index]:
            finish_reason = "tool_calls"
        extra = ""
        if self._with_ids and delta.tokens:
            extra = f',"token_ids":{to_json(delta.tokens)}'
        if not (parts or delta.finish_reason or extra or self._with_logprobs):
            return b""
        logprobs = "null"
        if self._with_logprobs and delta.tokens:
            entries = chat_logprobs(delta.tokens, delta.logprobs, self._vocabulary)
            logprobs = to_json(entries)
        end = _GOES_ON
        if finish_reason:
            end = f'"finish_reason":{to_json(finish_reason)},"stop_reason":{to_json(delta.stop_reason)}'
        return data + self._render(index, content, logprobs, end + extra)

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        """Return the event with the token counts."""
        return sse.event(to_json({**self._chunk_envelope, "choices": [], "usage": usage}))

    def whole(self, choices: Sequence[Choice], usage: dict[str, Any]) -> bytes:
        """Return the body of an answer given at once."""
        entries = [self._choice(index, choice) for index, choice in enumerate(choices)]
        return to_json({**self._envelope, "choices": entries, "usage": usage}).encode()

    def _render(self, index: int, delta: str, logprobs: str, end: str) -> bytes:
        return (f'data: {self._head}{index},"delta":{delta},"logprobs":{logprobs},{end}}}]}}\n\n').encode()

    def _content(self, index: int, part: Part) -> str:
        """Return a delta. A call comes as a whole: it is one only when it is complete."""
        if isinstance(part, str):
            return f'{{"content":{to_json(part)}}}'
        number = self._calls[index]
        self._calls[index] += 1
        return to_json({"tool_calls": [{"index": number, **part.entry()}]})

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        text = "".join(choice.texts)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        finish_reason: str | None = choice.finish_reason
        if self._tools is not None:
            text, calls = read_whole(self._tools, text)
            if calls:
                message.update(content=text or None, tool_calls=[call.entry() for call in calls])
                finish_reason = "tool_calls" if finish_reason == "stop" else finish_reason
        entry: dict[str, Any] = {
            "index": index,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if self._with_logprobs:
            entry["logprobs"] = chat_logprobs(choice.tokens, choice.logprobs, self._vocabulary)
        if self._with_ids:
            entry["token_ids"] = choice.tokens
            entry["prompt_token_ids"] = self._prompt
        return entry
