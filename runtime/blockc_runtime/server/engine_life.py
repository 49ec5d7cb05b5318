"""One engine process, from its start to its end, and the connection that it makes.

In: a process, and the plan that it was started with. Out: an `EngineClient` that is attached once it is ready.
Invariant: a process has one connection; after `end` it is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import Process
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockc_runtime.server.engine_client import EngineClient
from blockc_runtime.wire.codecs import ProtocolError
from blockc_runtime.wire.frames import FrameBuffer, encode
from blockc_runtime.wire.messages import EngineError, Load, Loaded, LoadFailed, Message, Ready, Retire, Shutdown

_END_S = 1.0  # for each way to end an engine; nothing is lost with one that is killed
_LINE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFile:
    """What an engine is given of a plan: a file of ours, which nobody changes, its SHA-256, and the plan's number."""

    epoch: int
    path: Path
    digest: str


class EngineGoneError(Exception):
    """The engine ended before it answered, or there is none."""


class EngineLife:
    """One engine process, from its start to its end."""

    def __init__(
        self,
        process: Process,
        client: EngineClient,
        engine: int,
        plan: PlanFile,
        progress: Callable[[str], None],
    ) -> None:
        self._process = process
        self._client = client
        self._engine = engine
        self._plan = plan
        self._epochs: set[int] = set()
        self._loading: asyncio.Future[Loaded | LoadFailed] | None = None
        self._awaited = -1  # the epoch that is being loaded
        self._progress = progress
        self._transport: asyncio.Transport | None = None
        self._ready = asyncio.Event()
        self._gone = asyncio.Event()
        self.error: EngineError | None = None
        self._tasks = (
            asyncio.create_task(self._forward_output()),
            asyncio.create_task(self._watch_exit()),
        )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    async def ready(self) -> bool:
        """Wait until it serves (True) or has ended without."""
        waits = {asyncio.create_task(event.wait()) for event in (self._ready, self._gone)}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self._ready.is_set()

    async def ended(self) -> None:
        """Wait until it serves no more."""
        await self._gone.wait()

    def has(self, epoch: int) -> bool:
        """Whether it serves, and has this plan."""
        return epoch in self._epochs and not self._gone.is_set()

    async def load(self, plan: PlanFile, *, alone: bool) -> Loaded | LoadFailed:
        """Have it make a plan ready. Raises `EngineGoneError` if it ends meanwhile."""
        if not self._ready.is_set() or self._gone.is_set():
            raise EngineGoneError
        self._loading, self._awaited = asyncio.get_running_loop().create_future(), plan.epoch
        self.send(Load(epoch=plan.epoch, plan=str(plan.path), plan_digest=plan.digest, alone=alone))
        gone = asyncio.create_task(self._gone.wait())
        try:
            waits: set[asyncio.Future[Any]] = {self._loading, gone}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not self._loading.done():
                raise EngineGoneError
            return self._loading.result()
        finally:
            gone.cancel()
            self._loading = None

    async def end(self) -> None:
        """End the process: by asking, by SIGTERM, by SIGKILL."""
        if self._transport is not None and not self._transport.is_closing():
            self.send(Shutdown())
        for force in (None, self._process.terminate, self._process.kill):
            if force is not None:
                with contextlib.suppress(ProcessLookupError):
                    force()
            # One that never connected has nobody to ask it.
            patience_s = 0.0 if force is None and self._transport is None else _END_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), patience_s)
                break
        if self._transport is not None:
            self._transport.close()
        for task in self._tasks:
            task.cancel()

    def exit_text(self) -> str:
        """Say how the process ended, in a few words."""
        code = self._process.returncode
        if self.error is not None:
            return f"{self.error.code}: {self.error.message}"
        if code is None:
            return "its connection was lost"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    # The connection's callbacks

    def on_connected(self, transport: asyncio.Transport) -> bool:
        """Whether this is the engine's first and only connection."""
        if self._transport is not None:
            return False
        self._transport = transport
        return True

    def send(self, message: Message) -> None:
        """Write a frame, unless the engine has just gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    def on_message(self, message: Message) -> None:
        """Take in a frame."""
        match message:
            case Ready(plan_digest=digest) if digest == self._plan.digest:
                self._ready.set()
                self._epochs.add(self._plan.epoch)
                self._client.attach(self._engine, self.send, self._plan.epoch)
            case Loaded() | LoadFailed():
                awaited = self._loading is not None and not self._loading.done() and message.epoch == self._awaited
                if awaited and self._loading is not None:
                    self._loading.set_result(message)
                    if isinstance(message, Loaded):
                        self._epochs.add(message.epoch)
                elif isinstance(message, Loaded):  # nobody waits for it any more
                    self.send(Retire(epoch=message.epoch))
            case Ready():
                self.error = EngineError(code="BC901", message="the plan file changed while the server was running")
                self.on_lost()
            case EngineError():
                self.error = message
            case _:
                self._client.receive(self._engine, message)

    def on_read(self) -> None:
        """All frames that came together have been taken in."""
        self._client.offer()

    def on_lost(self) -> None:
        """The connection has ended."""
        self._gone.set()

    async def _watch_exit(self) -> None:
        await self._process.wait()
        if self._transport is None:  # else the socket's end comes after all that was sent
            self._gone.set()

    async def _forward_output(self) -> None:
        """Pass what the process prints on, line by line, however long or broken."""
        assert self._process.stdout is not None
        rest = b""
        while data := await self._process.stdout.read(_LINE_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _LINE_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._progress("engine: " + line.decode("utf-8", "replace"))


class EngineConnection(asyncio.Protocol):
    """Bytes of the socket to messages."""

    def __init__(self, life: EngineLife | None) -> None:
        self._life = life
        self._frames = FrameBuffer()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it if it is the engine's first."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._life is None or not self._life.on_connected(transport):
            self._life = None
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Hand on what is whole."""
        if self._life is None or self._transport is None:
            return
        try:
            for message in self._frames.feed(data):
                self._life.on_message(message)
        except ProtocolError:
            self._transport.abort()
        finally:
            self._life.on_read()

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine is gone, or was told to go."""
        if self._life is not None:
            self._life.on_lost()
