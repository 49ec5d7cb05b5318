"""The engine's end of the socket to its server.

In: bytes. Out: messages, and the end of this process soon after the server's. Invariant: messages come whole and in
order.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time

from blockc_runtime.wire.frames import FrameBuffer, encode
from blockc_runtime.wire.messages import Message

_RECEIVE_BYTES = 1 << 18
_ORPHAN_GRACE_S = 3.0


class ServerGoneError(Exception):
    """The other end of the socket was closed."""


class Channel:
    """The engine's end of the socket: whole messages, in order."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._frames = FrameBuffer()
        self._poller = select.poll()
        self._poller.register(connection, select.POLLIN)

    def receive(self, wait_s: float | None) -> list[Message]:
        """Return what arrived, after at most ``wait_s`` seconds; None: sleep until bytes come."""
        if not self._poller.poll(None if wait_s is None else wait_s * 1000):
            return []
        try:
            data = self._connection.recv(_RECEIVE_BYTES)
        except OSError as error:
            raise ServerGoneError from error
        if not data:
            raise ServerGoneError
        return self._frames.feed(data)

    def send(self, *messages: Message) -> None:
        """Write messages in one go. The server reads without pause, so this does not block long."""
        try:
            self._connection.sendall(b"".join(encode(message) for message in messages))
        except OSError as error:
            raise ServerGoneError from error


def end_with(connection: socket.socket) -> None:
    """End this process soon after its server: even while it loads, or in a step that hangs.

    The loop notices a closed socket by itself between two steps; this is for when it cannot.
    """

    def watch() -> None:
        poller = select.poll()
        poller.register(connection, 0)  # no events asked for: only a hang-up wakes it
        poller.poll()
        time.sleep(_ORPHAN_GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()
