"""Keeps one engine process alive.

In: the command that starts an engine. Out: an `EngineClient` that is attached whenever an engine
is ready. Invariant: there is at most one engine process, and none once `stop` has returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable, Sequence
from pathlib import Path

from blockc.diag import CODES, DiagnosticError, Diagnostics
from blockc_runtime.server.engine_client import EngineClient
from blockc_runtime.server.metrics import Metrics
from blockc_runtime.wire import (
    EngineError,
    FrameBuffer,
    Message,
    ProtocolError,
    Ready,
    Shutdown,
    encode,
)

EngineCommand = Callable[[Path], Sequence[str]]

_FAILED_STARTS = 3
_BACKOFF_S = (0.0, 0.1, 0.5, 2.0)
_STABLE_S = 10.0
_END_S = 2.0
_LINE_BYTES = 4096
_HELP = {
    "BC903": "delete the file that it names and compile again: the zoo stores again what it lacks",
    "BC904": "compile the spec again: the zoo stores again what it lacks",
    "BC905": "serve the plan with the version of blockc that compiled it",
}


def engine_command(plan: Path, zoo: Path, executor: str, *, null_step_s: float = 0.0) -> EngineCommand:
    """Return the command of the engine proper, for a socket."""

    def command(socket: Path) -> Sequence[str]:
        options: tuple[object, ...] = ("--plan", plan, "--zoo", zoo, "--socket", socket, "--executor", executor)
        if executor == "null":
            options = (*options, "--null-step-s", null_step_s)
        # -P: nothing that lies in the directory we happen to run in is imported.
        return (sys.executable, "-P", "-m", "blockc_runtime.engine", *map(str, options))

    return command


class Supervisor:
    """Starts the engine, restarts it when it dies, and ends it."""

    def __init__(
        self,
        client: EngineClient,
        command: EngineCommand,
        *,
        plan_digest: str,
        metrics: Metrics,
        progress: Callable[[str], None],
    ) -> None:
        self._client = client
        self._command = command
        self._plan_digest = plan_digest
        self._metrics = metrics
        self._progress = progress
        self._directory = Path(tempfile.mkdtemp(prefix="blockc-"))  # mode 0700: ours alone
        self._socket = self._directory / "engine.sock"
        self._server: asyncio.Server | None = None
        self._life: _Life | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def engine_pid(self) -> int | None:
        """The process in force, if there is one."""
        return None if self._life is None else self._life.pid

    async def start(self) -> None:
        """Start the first engine and wait until it is ready. Raises `DiagnosticError`."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._on_connection, str(self._socket))
        life = await self._begin()
        if not await life.ready():
            error = life.error or EngineError(
                code="BC999", message=f"the engine ended while it started ({life.exit_text()})"
            )
            await self.stop()
            raise DiagnosticError(_diagnostics(error))
        self._task = asyncio.create_task(self._keep_alive(life))

    async def stop(self) -> None:
        """End the engine and wait for its end."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._life is not None:
            await self._life.end()
        self._client.detach()
        if self._server is not None:
            self._server.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _begin(self) -> _Life:
        # OpenMP threads that spin between steps take the cores from the server.
        # A short spin keeps them from sleeping between two ops of one step (65 ms against 48 ms a step).
        # glibc asks for huge pages: 26 GB/s of weights are read where small pages give 24.
        environment = {
            "OMP_WAIT_POLICY": "PASSIVE",
            "GOMP_SPINCOUNT": "10000",
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
            **os.environ,
        }
        process = await asyncio.create_subprocess_exec(
            *self._command(self._socket),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            env=environment,
            start_new_session=True,  # a terminal's signals reach the server only
        )
        self._life = _Life(process, self._client, self._plan_digest, self._progress)
        return self._life

    def _on_connection(self) -> asyncio.Protocol:
        return _Connection(self._life)

    async def _keep_alive(self, life: _Life) -> None:
        """Restart until stopped. Starts that fail one after another end it for good."""
        loop = asyncio.get_running_loop()
        failed_starts = quick_deaths = 0
        began_s = loop.time()
        while True:
            if await life.ready():
                failed_starts = 0
                await life.ended()
                quick_deaths = 0 if loop.time() - began_s > _STABLE_S else quick_deaths + 1
            else:
                failed_starts += 1
            await life.end()
            self._client.detach()
            if failed_starts >= _FAILED_STARTS:
                self._progress(f"the engine failed to start {failed_starts} times; giving up")
                self._client.give_up()
                return
            self._progress(f"the engine ended ({life.exit_text()}); starting another one")
            failures = max(failed_starts, quick_deaths - 1)
            await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
            self._metrics.engine_restarts.inc()
            began_s = loop.time()
            life = await self._begin()


class _Life:
    """One engine process, from its start to its end."""

    def __init__(
        self,
        process: Process,
        client: EngineClient,
        plan_digest: str,
        progress: Callable[[str], None],
    ) -> None:
        self._process = process
        self._client = client
        self._plan_digest = plan_digest
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
        match message:
            case Ready(plan_digest=digest) if digest == self._plan_digest:
                self._ready.set()
                self._client.attach(self.send)
            case Ready():
                self.error = EngineError(code="BC901", message="the plan file changed while the server was running")
                self.on_lost()
            case EngineError():
                self.error = message
            case _:
                self._client.receive(message)

    def on_lost(self) -> None:
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


class _Connection(asyncio.Protocol):
    """Bytes of the socket to messages."""

    def __init__(self, life: _Life | None) -> None:
        self._life = life
        self._frames = FrameBuffer()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._life is None or not self._life.on_connected(transport):
            self._life = None
            transport.close()

    def data_received(self, data: bytes) -> None:
        if self._life is None or self._transport is None:
            return
        try:
            for message in self._frames.feed(data):
                self._life.on_message(message)
        except ProtocolError:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._life is not None:
            self._life.on_lost()


def _diagnostics(error: EngineError) -> Diagnostics:
    problems = Diagnostics()
    code = error.code if error.code in CODES else "BC999"
    problems.report(code, error.message, help=_HELP.get(code))
    return problems
