"""What the server has of its engines: whether each works, how to send to it, which plans it has.

In: what its supervisor and its process say. Out: the same, to `EngineClient`. Invariant: one question is under way at
most, whoever asks; it is answered once, or its askers are told that the engine went.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum

from blockc_runtime.server.metrics import EngineStats, Metrics
from blockc_runtime.wire.codecs import ProtocolError
from blockc_runtime.wire.messages import Message, Stats, StatsQuery


class EngineState(Enum):
    """Whether requests are being worked on."""

    STARTING = "starting"  # also between an engine's death and its successor
    READY = "ready"
    FAILED = "failed"


_BEST_FIRST = tuple(EngineState[name] for name in ("READY", "STARTING", "FAILED"))


class EngineUnavailableError(Exception):
    """There is no engine and there will be none, or the server is ending."""


@dataclass(slots=True, kw_only=True, eq=False)
class EngineLink:
    """Lives on one event loop; nothing here blocks. ``device``: what its engine runs on, for people."""

    device: str
    state: EngineState = EngineState.STARTING
    send: Callable[[Message], None] | None = None
    open: set[int] = field(default_factory=set)  # epochs that the engine has
    _asked: asyncio.Future[Stats] | None = None

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
        if self._asked is not None:
            self._asked.cancel()
            self._asked = None

    def tell(self, message: Message) -> None:
        """Send, if there is anybody."""
        if self.send is not None:
            self.send(message)

    def stats(self) -> asyncio.Future[Stats]:
        """How the engine is, once it says so; for all who ask meanwhile. Raises `EngineUnavailableError`."""
        if self.send is None:
            raise EngineUnavailableError
        if self._asked is None:
            self._asked = asyncio.get_running_loop().create_future()
            self.send(StatsQuery())
        return self._asked

    def take(self, message: Message) -> None:
        """Take in what is no request's. Raises `ProtocolError` for what no engine says."""
        if not isinstance(message, Stats):
            raise ProtocolError(f"the engine sent {type(message).__name__}")
        if self._asked is not None:
            self._asked.set_result(message)
            self._asked = None


class EngineLinks(dict[int, EngineLink]):
    """Those of a server, by the numbers of their devices."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__()
        self._metrics = metrics
        self._were_ready: set[int] = set()

    def expect(self, engine: int, device: str) -> None:
        """There is, or will be, an engine, whose device is called so from here on."""
        link = self.setdefault(engine, EngineLink(device=device))
        if link.device != device:
            self._metrics.forget(link.device)
            link.device = device
        self._metrics.engine_up.labels(device).set(link.send is not None)

    def attach(self, engine: int, send: Callable[[Message], None]) -> None:
        """It is there."""
        link = self[engine]
        link.attach(send)
        self._metrics.engine_up.labels(link.device).set(1)
        self._were_ready.add(engine)

    def detach(self, engine: int) -> bool:
        """It is gone; False: it was not there."""
        link = self.get(engine)
        if link is None or link.send is None:
            return False
        link.detach()
        self._metrics.engine_up.labels(link.device).set(0)
        return True

    def dismiss(self, engine: int) -> None:
        """No plan needs it any more, and it has ended."""
        self._metrics.forget(self.pop(engine).device)
        self._were_ready.discard(engine)

    def were_ready(self, engines: Iterable[int]) -> bool:
        """Whether all of them have been, at some time."""
        return self._were_ready.issuperset(engines)

    def has_failed(self, engine: int) -> bool:
        """Whether there will be none."""
        return engine in self and self[engine].state is EngineState.FAILED

    def state_of(self, engines: Iterable[int], *, worst: bool = False) -> EngineState:
        """The best of theirs, or the worst."""
        return (max if worst else min)((self[engine].state for engine in engines), key=_BEST_FIRST.index)

    async def stats(
        self, groups_of: Callable[[int], tuple[int, ...] | None], patience_s: float | None = None
    ) -> tuple[EngineStats, ...]:
        """How those are that answer in time. ``groups_of``: the KV groups that the plan in force gives to an engine.

        Raises `EngineUnavailableError` where there is none.
        """
        asked = {engine: link.stats() for engine, link in sorted(self.items()) if link.send is not None}
        if not asked:
            raise EngineUnavailableError
        await asyncio.wait(asked.values(), timeout=patience_s)
        return tuple(
            EngineStats(device=self[engine].device, stats=answer.result(), groups=groups_of(engine))
            for engine, answer in asked.items()
            if answer.done() and not answer.cancelled() and engine in self
        )
