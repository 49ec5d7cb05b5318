"""Parts of an answer that is being streamed, written at once instead of through the layers of the app.

In: bytes. Out: a chunk of an HTTP/1.1 body on the client's connection. Invariant: the bytes and their order are those
that the HTTP server would have written; nothing is buffered beyond what it would buffer.
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

_TRANSPORT: Final = "blockc.transport"  # in a scope's state


class HttpProtocol(H11Protocol):
    """Uvicorn's own, which also tells the app what it writes to."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Each scope gets a copy of the state."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, _TRANSPORT: transport}


class Direct:
    """The connection of one answer, after its head."""

    __slots__ = ("_transport",)

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    @property
    def is_clear(self) -> bool:
        """Whether all that was written before has gone, and the client is there."""
        return not self._transport.get_write_buffer_size() and not self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Write a chunk; an empty one would be the last."""
        if data:
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))


def direct(scope: Scope) -> Direct | None:
    """None: its answer is not in chunks (HTTP/1.0), or another server than ours runs the app."""
    transport = scope.get("state", {}).get(_TRANSPORT)
    return Direct(transport) if transport is not None and scope["http_version"] == "1.1" else None
