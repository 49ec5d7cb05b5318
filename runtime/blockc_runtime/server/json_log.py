"""What the server says, as one JSON object a line.

In: lines of progress, requests that have ended, and what libraries give to `logging`. Out: lines. Invariant: every line
is an object with ``time``, ``level`` and ``event``; none holds a key, a prompt or an output. An exception is told by
its type and where it was raised, not by its words: those may quote what a client sent.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from blockc.diag import Diagnostic
from blockc_runtime.server.access import Exchange

_ENGINE: Final = "engine: "
_WARNING: Final = "warning["


class JsonLog:
    """Writes lines by a function that ends them."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def say(self, words: str) -> None:
        """A line of progress: the server's own, or what its engine printed."""
        event = "engine" if words.startswith(_ENGINE) else "server"
        level = "warning" if words.startswith(_WARNING) else "info"
        self._put(level, event, message=words.removeprefix(_ENGINE))

    def tell(self, exchange: Exchange) -> None:
        """A request: the audit log's line, and where its time went."""
        fields = exchange.line()
        del fields["time"]
        if (work := exchange.work) is not None:
            fields["queue_ms"] = _ms(work.started_s, work.submitted_s)
            fields["ttft_ms"] = _ms(work.first_token_s, work.submitted_s)
            fields["engine_ms"] = _ms(work.ended_s, work.submitted_s)
        level = "error" if exchange.status >= 500 else "info"
        self._put(level, "request", **fields)

    def refuse(self, problem: Diagnostic) -> None:
        """Why the server does not start."""
        self._put("error", "diagnostic", code=problem.code.id, message=problem.message, help=problem.help)

    def take_logging(self) -> None:
        """Write what libraries log, warnings and worse."""
        root = logging.getLogger()
        root.handlers = [_Handler(self._put)]
        root.setLevel(logging.WARNING)

    def _put(self, level: str, event: str, **fields: Any) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._write(json.dumps({"time": time, "level": level, "event": event, **fields}, ensure_ascii=True))


class _Handler(logging.Handler):
    """Records of `logging`, as lines."""

    def __init__(self, put: Callable[..., None]) -> None:
        super().__init__()
        self._put = put

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"logger": record.name}
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            fields["message"] = record.getMessage()
        else:
            # uvicorn's own words for a bug have the traceback in them, and with it the exception's.
            fields["message"] = str(record.msg).splitlines()[0] if record.msg else ""
            fields["exception"] = type(error).__name__
            frames = traceback.extract_tb(error.__traceback__)
            fields["raised_in"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        self._put(record.levelname.lower(), "log", **fields)


def _ms(later_s: float | None, earlier_s: float) -> float | None:
    return None if later_s is None else round((later_s - earlier_s) * 1000, 1)
