"""Request ids and the audit log.

In: every HTTP request. Out: an ``x-request-id`` on its answer, and one line of JSON about it. Invariant: a line says
who did what and how it ended; it holds no key, no header, no query, no prompt and no output.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

NOTES = "blockc.notes"  # in a scope: what is known of the request so far
_CLIENT_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_QUIET = frozenset({"/health", "/ready", "/metrics"})
_PATH_CHARS = 100

AuditLine = dict[str, Any]


def audit_file(path: Path) -> Callable[[AuditLine], None]:
    """Return what appends lines to a file. Opened for each line: whoever rotates the file need tell nobody."""

    def write(line: AuditLine) -> None:
        data = json.dumps(line, ensure_ascii=True).encode() + b"\n"
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, data)
        finally:
            os.close(handle)

    return write


def note(scope: Scope, **facts: Any) -> None:
    """Add to what the audit log says of a request."""
    if (notes := scope.get(NOTES)) is not None:
        notes.update(facts)


class AccessMiddleware:
    """The outermost layer. A client's own id is kept if it is harmless."""

    def __init__(self, app: ASGIApp, audit: Callable[[AuditLine], None] | None) -> None:
        self._app = app
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with an id, and write the line when the answer has ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        notes: AuditLine = {}
        scope[NOTES] = notes
        began_s = time.monotonic()
        status = 0  # nothing was answered: the client had left

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            status = status or 500  # answered further out, as every bug is
            raise
        finally:
            if self._audit is not None and scope["path"] not in _QUIET:
                self._audit(
                    {
                        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                        "request_id": request_id,
                        "method": scope["method"],
                        "path": scope["path"][:_PATH_CHARS],
                        "status": status,
                        "duration_ms": round((time.monotonic() - began_s) * 1000),
                        **notes,
                    }
                )


def _request_id(scope: Scope) -> str:
    given = [value for name, value in scope["headers"] if name == b"x-request-id"]
    if len(given) == 1 and _CLIENT_ID.fullmatch(given[0]):
        return str(given[0].decode())
    return f"req_{secrets.token_hex(12)}"
