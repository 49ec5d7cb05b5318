"""Request ids, and what is known of each request once it has ended.

In: every HTTP request. Out: an ``x-request-id`` on its answer, and an `Exchange` for the audit log and whoever else
watches. Invariant: it says who did what, when, and how it ended; it holds no key, no header but a trace's, no query, no
prompt and no output.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blockc.diag import refuse

NOTES = "blockc.notes"  # in a scope: what is known of the request so far
_WORK = "blockc.work"  # in a scope: what an engine did for it
_CLIENT_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_QUIET = frozenset({"/health", "/ready", "/metrics"})
_PATH_CHARS = 100

AuditLine = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What an engine did for one HTTP call. Times are of the monotonic clock; None: it did not come to that.

    ``segments``: those of the plan that its tokens passed, in order.
    """

    submitted_s: float
    started_s: float | None
    first_token_s: float | None
    ended_s: float
    segments: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request and how it was answered. ``status`` 0: it was not, for the client had left.

    ``began_s`` is of the monotonic clock, ``began_unix_s`` the same moment. ``notes``: what routes found out.
    ``trace``: the client's ``traceparent`` and ``tracestate``, as they came.
    """

    request_id: str
    method: str
    path: str
    status: int
    began_s: float
    began_unix_s: float
    ended_s: float
    notes: Mapping[str, Any]
    work: Work | None
    trace: Mapping[str, str]

    def line(self) -> AuditLine:
        """As the audit log has it."""
        return {
            "time": datetime.fromtimestamp(self.unix_s(self.ended_s), UTC).isoformat(timespec="milliseconds"),
            "request_id": self.request_id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "duration_ms": round((self.ended_s - self.began_s) * 1000),
            **self.notes,
        }

    def unix_s(self, monotonic_s: float) -> float:
        """A moment of the request on the clock that others have, too."""
        return self.began_unix_s + monotonic_s - self.began_s


Watcher = Callable[[Exchange], None]


def audit_file(path: Path) -> Callable[[AuditLine], None]:
    """Return what appends lines to a file. Opened for each line: whoever rotates the file need tell nobody.

    Raises `DiagnosticError` (BC003) if it cannot be written to.
    """

    def opened() -> int:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(line: AuditLine) -> None:
        data = json.dumps(line, ensure_ascii=True).encode() + b"\n"
        handle = opened()
        try:
            os.write(handle, data)
        finally:
            os.close(handle)

    try:
        os.close(opened())
    except OSError as error:
        refuse("BC003", f"cannot write {path}: {error.strerror}", "name another file with --audit")
    return write


def note(scope: Scope, **facts: Any) -> None:
    """Add to what the audit log says of a request."""
    if (notes := scope.get(NOTES)) is not None:
        notes.update(facts)


def note_work(scope: Scope, work: Work) -> None:
    """Tell what an engine did for a request."""
    scope[_WORK] = work


class AccessMiddleware:
    """The outermost layer. A client's own id is kept if it is harmless. ``watchers`` see what has ended."""

    def __init__(self, app: ASGIApp, watchers: Sequence[Watcher]) -> None:
        self._app = app
        self._watchers = tuple(watchers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with an id, and write the line when the answer has ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        notes: AuditLine = {}
        scope[NOTES] = notes
        began_s, began_unix_s = time.monotonic(), time.time()
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
        except ClientDisconnect:
            pass  # in the middle of its request: nobody is there to be answered
        except Exception:
            status = status or 500  # answered further out, as every bug is
            raise
        finally:
            if self._watchers and scope["path"] not in _QUIET:
                exchange = Exchange(
                    request_id=request_id,
                    method=scope["method"],
                    path=scope["path"][:_PATH_CHARS],
                    status=status,
                    began_s=began_s,
                    began_unix_s=began_unix_s,
                    ended_s=time.monotonic(),
                    notes=notes,
                    work=scope.get(_WORK),
                    trace=_trace(scope),
                )
                for watch in self._watchers:
                    watch(exchange)


def _trace(scope: Scope) -> dict[str, str]:
    """The headers of W3C's Trace Context, where they are there once."""
    found: dict[str, list[bytes]] = {}
    for name, value in scope["headers"]:
        if name in (b"traceparent", b"tracestate"):
            found.setdefault(name.decode(), []).append(value)
    return {name: values[0].decode("latin-1") for name, values in found.items() if len(values) == 1}


def _request_id(scope: Scope) -> str:
    given = [value for name, value in scope["headers"] if name == b"x-request-id"]
    if len(given) == 1 and _CLIENT_ID.fullmatch(given[0]):
        return str(given[0].decode())
    return f"req_{secrets.token_hex(12)}"
