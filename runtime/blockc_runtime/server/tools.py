"""Tools: what a client offers, how a model calls them, and its calls as OpenAI words them.

In: the tools of a body and the source of the chat template; then an output's text, in pieces. Out: a grammar for calls
that have to come; text and `ToolCall` as they are complete. Invariant: only a call of a tool that was offered is one;
everything else that the model writes stays text, whole and in order, however the pieces were cut.

Two forms are read: Hermes' (``<tool_call>{"name": ..., "arguments": ...}</tool_call>``, any number of them, with text
around), where the template speaks of it, else that of Llama 3: the whole answer is one such object.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_CALLS = 16  # that have to come; a model that may call freely may do so more often


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One complete call. ``arguments``: a JSON object as text."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")

    def entry(self) -> dict[str, Any]:
        """Return it as it stands in an answer."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


Part = str | ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Tools in use. ``parameters``: JSON schemas by name. ``arguments_key``: the template's word for arguments."""

    parameters: Mapping[str, Any]
    form: Literal["tags", "object"]
    arguments_key: str
    is_parallel: bool

    def schema(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the schema of one call of any of ``names``."""
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, self.arguments_key: self.parameters[name]},
                "required": ["name", self.arguments_key],
                "additionalProperties": False,
            }
            for name in names
        ]
        return calls[0] if len(calls) == 1 else {"anyOf": calls}


def form_of(template: str) -> tuple[Literal["tags", "object"], str]:
    """Return how calls look to a model with this chat template, and its word for arguments."""
    if OPEN in template:
        return "tags", "arguments"
    return "object", "parameters" if '"parameters": ' in template else "arguments"


class ToolReader:
    """The state of one output."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._held = ""
        self._is_text = False  # of an answer that would have to be an object as a whole
        self._is_behind_call = False
        self._blanks = ""

    def feed(self, text: str) -> list[Part]:
        """Add text; return what is complete now."""
        if self._is_text:
            return [text] if text else []
        self._held += text
        return self._tagged() if self._tools.form == "tags" else self._opening()

    def finish(self) -> list[Part]:
        """Return what was held back."""
        held, self._held = self._held, ""
        if self._tools.form == "object" and held and (call := self._call(held)):
            return [call]
        if self._tools.form == "tags" and held.startswith(OPEN) and (call := self._call(held.removeprefix(OPEN))):
            return [call]  # the model left out the end of its last call
        held = str(self._without_blanks(held))
        return [held] if held else []

    def _opening(self) -> list[Part]:
        if self._held.lstrip()[:1] in ("", "{"):
            return []
        self._is_text = True
        held, self._held = self._held, ""
        return [held]

    def _tagged(self) -> list[Part]:
        parts: list[Part] = []
        while True:
            start = self._held.find(OPEN)
            if start < 0:
                kept = _overlap(self._held, OPEN)
                parts.append(self._held[: len(self._held) - kept])
                self._held = self._held[len(self._held) - kept :]
                break
            parts.append(self._held[:start])
            self._held = self._held[start:]
            end = self._held.find(CLOSE)
            if end < 0:
                break
            whole, self._held = self._held[: end + len(CLOSE)], self._held[end + len(CLOSE) :]
            parts.append(self._call(whole[len(OPEN) : end]) or whole)
        return [part for part in map(self._without_blanks, parts) if part]

    def _without_blanks(self, part: Part) -> Part:
        """Leave out what stands between calls, and behind the last, if it is blank."""
        if isinstance(part, ToolCall):
            self._is_behind_call, self._blanks = True, ""
            return part
        if self._is_behind_call:
            part = self._blanks + part
            self._is_behind_call = not part.strip()
            self._blanks, part = (part, "") if self._is_behind_call else ("", part)
        return part

    def _call(self, text: str) -> ToolCall | None:
        """Return the call that a text is; None if it is none."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if value["name"] not in self._tools.parameters or not isinstance(arguments, dict):
            return None
        return ToolCall(name=value["name"], arguments=json.dumps(arguments, ensure_ascii=False))


def read_whole(tools: Tools, text: str) -> tuple[str, list[ToolCall]]:
    """Return the text around the calls of a whole output, and the calls."""
    reader = ToolReader(tools)
    parts = [*reader.feed(text), *reader.finish()]
    calls = [part for part in parts if isinstance(part, ToolCall)]
    return "".join(part for part in parts if isinstance(part, str)), calls


def _overlap(text: str, mark: str) -> int:
    """How many of the last characters of ``text`` may be the beginning of ``mark``."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-size:])), 0)
