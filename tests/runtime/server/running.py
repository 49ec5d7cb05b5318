"""A server under test: real sockets, a real engine process, its event loop in a thread."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from blockc.diag import DiagnosticError
from blockc.plan import load_plan
from blockc_runtime.server.access import Watcher
from blockc_runtime.server.auth import KeyRing
from blockc_runtime.server.catalogue import Catalogue
from blockc_runtime.server.dispatch import ALONE, Dispatch, dispatch_of
from blockc_runtime.server.engine_client import EngineClient, QueueLimits
from blockc_runtime.server.engine_life import PlanFile
from blockc_runtime.server.fleet import PlanParts, write_parts
from blockc_runtime.server.key_sources import KeySources
from blockc_runtime.server.metrics import Metrics
from blockc_runtime.server.serve import Server, listen, url_of
from blockc_runtime.server.supervisor import engine_command
from blockc_runtime.server.swap import PlanInForce, Swaps
from blockc_runtime.server.ui import SentPage
from blockc_runtime.wire.messages import Stats

_T = TypeVar("_T")
DIGEST = "d" * 64


class RunningServer:
    """Started on construction; ``url`` answers once it is."""

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        keys: KeyRing | None = None,
        engine_options: tuple[str, ...] = (),
        limits: QueueLimits | None = None,
        digest: str = DIGEST,
        make_page: Callable[[], SentPage] | None = None,
        audit: Callable[[dict[str, Any]], None] | None = None,
        watchers: Sequence[Watcher] = (),
        plan: Path | None = None,
        zoo: Path | None = None,
        patience_s: float = 20.0,
        sources: KeySources | None = None,
    ) -> None:
        """With ``plan`` and ``zoo``: the engine proper on the null executor, and plans that can be swapped."""
        self.progress: list[str] = []
        self.ready = threading.Event()
        self.error: DiagnosticError | None = None
        self.engine_options = list(engine_options)
        metrics = Metrics()
        parts = PlanParts(
            epoch=0, dispatch=Dispatch(), files={ALONE: PlanFile(epoch=0, path=Path("plan.json"), digest=digest)}
        )
        client, command, self.swaps = EngineClient(metrics, limits), self._command, None
        self._folder = TemporaryDirectory(prefix="blockc-test-")
        folder = Path(self._folder.name)
        if plan is not None and zoo is not None:
            in_force = PlanInForce.of(load_plan(plan), plan.read_bytes())
            parts = write_parts(folder, dispatch_of(in_force.plan), in_force.data, epoch=0)
            client = EngineClient(metrics, limits, parts.dispatch)
            self.swaps = Swaps(
                client=client, catalogue=catalogue, metrics=metrics, zoo=zoo, in_force=in_force, folder=folder,
                progress=self.progress.append, patience_s=patience_s, keys=keys, sources=sources,
            )  # fmt: skip
            real = engine_command(zoo, "null")
            command = lambda socket, of: (*real(socket, of), *self.engine_options)  # noqa: E731
        self.server = Server(
            catalogue=catalogue,
            keys=keys,
            command=command,
            plan=parts,
            progress=self.progress.append,
            client=client,
            metrics=metrics,
            make_page=make_page,
            audit=audit,
            watchers=watchers,
            swaps=self.swaps,
        )
        self._listener = listen("127.0.0.1", 0, with_keys=False)
        self.url = url_of(self._listener)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self.ready.wait(20) and self.error is None:
            raise TimeoutError(self.progress)

    def _command(self, socket_path: Path, plan: PlanFile) -> tuple[str, ...]:
        program = ("-m", "tests.runtime.server.standin", "--digest", DIGEST)
        return (sys.executable, *program, "--socket", str(socket_path), *self.engine_options)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        run = self.server.run(self._listener, ready=lambda _: self.ready.set(), drain_s=5)
        try:
            self.loop.run_until_complete(run)
        except DiagnosticError as error:
            self.error = error
            self.ready.set()
        finally:
            self.loop.close()

    def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run something on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def stats(self) -> Stats:
        """Of the one engine."""
        (engine,) = self.call(self.server.client.stats())
        return engine.stats

    def free_pages(self) -> int:
        pages = self.stats().pages[0]
        return pages.total - pages.held

    def engine_pid(self, engine: int = ALONE) -> int:
        """The process of an engine that is there."""
        assert self.server.fleet is not None
        return self.server.fleet.engine_pids[engine]

    def kill_engine(self, engine: int = ALONE) -> int:
        """SIGKILL an engine; return its pid."""
        os.kill(pid := self.engine_pid(engine), signal.SIGKILL)
        return pid

    def drain(self, drain_s: float) -> None:
        self.loop.call_soon_threadsafe(self.server.drain, drain_s)

    def join(self, timeout_s: float = 10) -> bool:
        """Whether the server ended in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def stop(self) -> None:
        if self._thread.is_alive() and not self.loop.is_closed():
            self.drain(0.0)
        assert self.join()
        self._folder.cleanup()


@contextmanager
def running(catalogue: Catalogue, **options: Any) -> Iterator[RunningServer]:
    server = RunningServer(catalogue, **options)
    try:
        yield server
    finally:
        server.stop()


def raw(url: str) -> socket.socket:
    """A plain connection, for what no client library would send."""
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)
