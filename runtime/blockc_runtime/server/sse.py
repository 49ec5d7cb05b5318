"""Server-sent events, cheaply.

In: JSON text. Out: the bytes of events. Invariant: one ``data:`` line an event, a blank line behind
it, and ``[DONE]`` as the last one of every stream.
"""

from __future__ import annotations

import json
from typing import Final

from starlette.types import Message

to_json: Final = json.JSONEncoder(separators=(",", ":")).encode
DONE = b"data: [DONE]\n\n"

START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # proxies of nginx's kind would collect the events
    ],
}


def event(data: str) -> bytes:
    """Return one event. JSON text holds no line breaks."""
    return f"data: {data}\n\n".encode()


def with_usage(events: bytes, usage: object) -> bytes:
    """Return events with token counts in each. Only the end of one is a brace before two line ends."""
    return events.replace(b"}\n\n", b',"usage":' + to_json(usage).encode() + b"}\n\n")


def body(data: bytes, *, more: bool) -> Message:
    """Return the ASGI message that sends ``data``."""
    return {"type": "http.response.body", "body": data, "more_body": more}
