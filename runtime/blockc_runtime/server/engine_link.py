"""What the server has of one engine: whether it works, how to send to it, which plans it has.

In: what its supervisor and its process say. Out: the same, to `EngineClient`. Invariant: a question is answered once,
in the order of questions, or its asker is told that the engine went.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from blockc_runtime.wire.codecs import ProtocolError
from blockc_runtime.wire.messages import Message, Stats, StatsQuery


class EngineState(Enum):
    """Whether requests are being worked on."""

    STARTING = "starting"  # also between an engine's death and its successor
    READY = "ready"
    FAILED = "failed"


class EngineUnavailableError(Exception):
    """There is no engine and there will be none, or the server is ending."""


@dataclass(slots=True, kw_only=True, eq=False)
class EngineLink:
    """Lives on one event loop; nothing here blocks. ``device``: what its engine runs on, for people."""

    device: str
    state: EngineState = EngineState.STARTING
    send: Callable[[Message], None] | None = None
    open: set[int] = field(default_factory=set)  # epochs that the engine has
    _waiters: list[asyncio.Future[Stats]] = field(default_factory=list)

    def attach(self, send: Callable[[Message], None]) -> None:
        """An engine is there."""
        self.send = send
        self.state = EngineState.READY
        self.open.clear()

    def detach(self) -> None:
        """It is gone."""
        self.send = None
        self.open.clear()
        self.state = EngineState.STARTING
        for waiter in self._waiters:
            waiter.cancel()
        self._waiters.clear()

    def tell(self, message: Message) -> None:
        """Send, if there is anybody."""
        if self.send is not None:
            self.send(message)

    async def stats(self) -> Stats:
        """Ask the engine how it is. Raises `EngineUnavailableError`."""
        if self.send is None:
            raise EngineUnavailableError
        waiter: asyncio.Future[Stats] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self.send(StatsQuery())
        return await waiter

    def take(self, message: Message) -> None:
        """Take in what is no request's. Raises `ProtocolError` for what no engine says."""
        if not isinstance(message, Stats):
            raise ProtocolError(f"the engine sent {type(message).__name__}")
        if self._waiters:
            self._waiters.pop(0).set_result(message)
