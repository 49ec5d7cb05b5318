"""Traces with a JSON object on each line: Mooncake's, and those that name what they hold.

Mooncake (arXiv 2407.00079, section 4): ``timestamp`` in milliseconds, ``input_length``, ``output_length``,
``hash_ids``: one id for each 512 tokens of the prompt, equal where everything up to there is equal. Others:
``timestamp`` (or ``arrival_time``, ``arrived_at``) in seconds, ``prompt_tokens`` (or ``input_tokens``, ``prompt_len``,
``input_len``, ``num_prefill_tokens``), ``output_tokens`` (or ``completion_tokens``, ``output_len``,
``num_decode_tokens``) and, where the trace says whom a request asks for, ``app`` (or ``model``) as ``tenant/app``.
Fields beside these are not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from blockc.simulate.traces.row import LineError, Lines, TraceRow, seconds_of, tokens_of

_AT = ("timestamp", "arrival_time", "arrived_at")
_PROMPT = ("prompt_tokens", "input_tokens", "prompt_len", "input_len", "num_prefill_tokens")
_OUTPUT = ("output_tokens", "completion_tokens", "output_len", "num_decode_tokens")
_APP = ("app", "model")
_MAX_HASH = 1 << 50


def read_mooncake(text: Sequence[str], lines: Lines) -> list[TraceRow]:
    """Rows with the blocks of their prompts."""

    def parse(number: int, line: str) -> TraceRow:
        item = _object(line)
        _, at = _field(item, ("timestamp",))
        _, prompt = _field(item, ("input_length",))
        _, output = _field(item, ("output_length",))
        return TraceRow(
            at_s=seconds_of(at, "timestamp") / 1000,
            prompt_tokens=tokens_of(prompt, "input_length"),
            output_tokens=tokens_of(output, "output_length"),
            line=number,
            blocks=_hashes(item.get("hash_ids", [])),
        )

    return lines.rows(enumerate(text, start=1), parse)


def read_jsonl(text: Sequence[str], lines: Lines) -> list[TraceRow]:
    """Rows that may name an app."""

    def parse(number: int, line: str) -> TraceRow:
        item = _object(line)
        (at_name, at), (prompt_name, prompt), (output_name, output) = (
            _field(item, names) for names in (_AT, _PROMPT, _OUTPUT)
        )
        app = next((item[name] for name in _APP if name in item), None)
        if app is not None and not isinstance(app, str):
            raise LineError("`app` is no string")
        return TraceRow(
            at_s=seconds_of(at, at_name),
            prompt_tokens=tokens_of(prompt, prompt_name),
            output_tokens=tokens_of(output, output_name),
            line=number,
            app=app,
        )

    return lines.rows(enumerate(text, start=1), parse)


def is_mooncake(line: str) -> bool:
    """Whether a line is one of Mooncake's."""
    try:
        item = _object(line)
    except LineError:
        return False
    return "input_length" in item


def _object(line: str) -> Mapping[str, Any]:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        raise LineError("not a JSON object") from None
    if not isinstance(item, dict):
        raise LineError("not a JSON object")
    return item


def _field(item: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Any]:
    for name in names:
        if name in item:
            return name, item[name]
    others = f" (nor {', '.join(f'`{name}`' for name in names[1:])})" if len(names) > 1 else ""
    raise LineError(f"no `{names[0]}`{others}")


def _hashes(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise LineError("`hash_ids` is no list")
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < _MAX_HASH:
            raise LineError("`hash_ids` holds something else than whole numbers from 0 on")
    return tuple(value)
