"""The server's life: check, listen, start the engines, serve, drain, end.

In: the options of ``blockc serve``. Out: nothing, once everything has ended. Invariant: without
keys only this machine can connect; when this returns or raises, no engine process is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from blockc.diag import refuse
from blockc.plan import ExecutionPlan, plan_bytes, read_plan, require_weights
from blockc.zoo import Zoo
from blockc_runtime.server import admin
from blockc_runtime.server.access import AuditLine, Watcher, audit_file
from blockc_runtime.server.adapters import AdapterOptions, Adapters
from blockc_runtime.server.app import create_app
from blockc_runtime.server.auth import KeyRing
from blockc_runtime.server.catalogue import Catalogue, load_catalogue
from blockc_runtime.server.direct import HttpProtocol
from blockc_runtime.server.dispatch import dispatch_of, on_node
from blockc_runtime.server.engine_client import EngineClient
from blockc_runtime.server.fleet import Fleet, PlanParts, write_parts
from blockc_runtime.server.json_log import JsonLog
from blockc_runtime.server.key_sources import KeySources, watch_keys
from blockc_runtime.server.metrics import Metrics
from blockc_runtime.server.secret_places import SecretPlaces
from blockc_runtime.server.spans import request_spans
from blockc_runtime.server.supervisor import EngineCommand, engine_command
from blockc_runtime.server.swap import PlanInForce, Swaps
from blockc_runtime.server.ui import SentPage

_GIVE_UP_S = 0.5  # for what operators began
# Of a connection that nothing is asked on. Longer than clients and proxies keep one (httpx 5, balancers 60 s): who
# asks must be the one that closes, or a request meets a connection that is just being closed.
_KEEP_ALIVE_S = 75
_FLUSH_S = 1  # for answers that are complete, and clients that do not read them


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """``node``: whose devices these are, of a plan of several nodes. ``port`` 0: any free one.

    ``drain_s``: how long requests may go on after SIGTERM.
    ``keys``: the keys file; ``secrets``: a folder with secrets that the plan names.
    ``audit``: the file that gets a line for each request. ``json_log``: progress comes as one JSON object a line, with
    one for each request. ``spans``: requests are told to OpenTelemetry.
    ``executor`` ``null`` computes nothing, and takes ``null_step_s`` for every step of it. ``make_page`` makes of a
    plan what ``/ui`` shows; None: there is no such route. ``adapters``: where fine-tunes lie that may be loaded.
    """

    plan: Path
    zoo: Path
    node: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    secrets: Path | None = None
    audit: Path | None = None
    executor: str = "torch"
    null_step_s: float = 0.0
    drain_s: float = 30.0
    json_log: bool = False
    spans: bool = False
    make_page: Callable[[ExecutionPlan], SentPage] | None = None
    adapters: AdapterOptions | None = None


def serve(options: ServeOptions, *, ready: Callable[[str], None], progress: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. ``ready`` gets the URL once requests are answered, ``progress`` lines of the log.

    Raises `DiagnosticError` for whatever is wrong with plan, zoo, keys, address or engine.
    """
    watchers: list[Watcher] = []
    if options.json_log:
        log = JsonLog(progress)
        log.take_logging()
        progress = log.say
        watchers.append(log.tell)
    spans = request_spans() if options.spans else None
    if spans is not None:
        watchers.append(spans.tell)
    in_force = _plan_of(options.plan, options.node)
    plan = in_force.plan
    catalogue = load_catalogue(plan, Zoo(options.zoo), progress)
    sources = _sources(options)
    keys = None
    if options.keys is not None or any(catalogue.key_secrets.values()):
        keys = KeyRing(sources.load(catalogue.key_secrets))
        _keep_to_ourselves(name for names in catalogue.key_secrets.values() for name in names)
    audit = None if options.audit is None else audit_file(options.audit)
    listener = listen(options.host, options.port, with_keys=keys is not None)
    if keys is None:
        progress("no --keys: every app is open to everybody on this machine")
    elif options.keys is None:
        progress("no --keys: nobody is the operator, who swaps plans and sees all of /metrics and /ui")
    dispatch = dispatch_of(plan)
    client = EngineClient(metrics := Metrics(), dispatch=dispatch)
    make = options.make_page
    with contextlib.ExitStack() as stack:
        if spans is not None:
            stack.callback(spans.close)
        # Ours alone: the plan that was named may be compiled anew while an engine starts again.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blockc-")))
        swaps = Swaps(
            client=client, catalogue=catalogue, metrics=metrics, zoo=options.zoo, in_force=in_force, folder=folder,
            progress=progress, keys=keys, sources=sources, node=options.node,
        )  # fmt: skip
        adapters = None if options.adapters is None else Adapters(options.adapters, swaps, options.zoo, progress)
        server = Server(
            catalogue=catalogue,
            keys=keys,
            command=engine_command(options.zoo, options.executor, null_step_s=options.null_step_s),
            plan=write_parts(folder, dispatch, in_force.data, epoch=client.epoch),
            progress=progress,
            client=client,
            metrics=metrics,
            make_page=None if make is None else lambda: make(swaps.in_force.plan),
            audit=audit,
            watchers=watchers,
            swaps=swaps,
            adapters=adapters,
        )
        metrics.predict_memory(plan)
        metrics.show_plan(in_force.digest)
        watching = None
        if keys is not None:
            watching = watch_keys(sources, keys, lambda: catalogue.key_secrets, progress)
        asyncio.run(server.run(listener, ready=ready, drain_s=options.drain_s, beside=watching))


def _sources(options: ServeOptions) -> KeySources:
    if options.secrets is not None and not options.secrets.is_dir():
        refuse("BC003", f"there is no folder {options.secrets}", "name the one that secrets are mounted in")
    places = SecretPlaces(folder=options.secrets, environment=dict(os.environ))
    return KeySources(file=options.keys, places=places)


def _keep_to_ourselves(secrets: Iterable[str]) -> None:
    """No process that we start needs to know them."""
    for name in secrets:
        os.environ.pop(name, None)


def _plan_of(path: Path, node: str | None) -> PlanInForce:
    """Read a plan once: what is checked is what is served."""
    plan = read_plan(data := plan_bytes(path), str(path))
    require_weights(plan)
    return PlanInForce.of(on_node(plan, node), data)


def listen(host: str, port: int, *, with_keys: bool) -> socket.socket:
    """Return a bound socket. Raises `DiagnosticError` (BC109) if the address cannot be used."""
    if not with_keys and not _is_loopback(host):
        refuse(
            "BC109",
            f"without keys the server listens on this machine only, not on {host}",
            help="give --keys FILE, or leave out --host",
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it cannot be the name of a host"
        refuse(
            "BC109",
            f"cannot listen on {host}, port {port}: {why}",
            help="name another with --host and --port; `--port 0` takes any that is free",
        )
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL under which a bound socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server:
    """The parts of a running server, put together."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        keys: KeyRing | None,
        command: EngineCommand,
        plan: PlanParts,
        progress: Callable[[str], None],
        client: EngineClient | None = None,
        metrics: Metrics | None = None,
        make_page: Callable[[], SentPage] | None = None,
        audit: Callable[[AuditLine], None] | None = None,
        watchers: Sequence[Watcher] = (),
        swaps: Swaps | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self.metrics = metrics or Metrics()
        self.client = client or EngineClient(self.metrics, dispatch=plan.dispatch)
        self.app = create_app(
            self.client, catalogue=catalogue, metrics=self.metrics, keys=keys, make_page=make_page, audit=audit,
            watchers=watchers, operations=None if swaps is None else lambda app: admin.install(app, swaps, adapters),
        )  # fmt: skip
        self.swaps, self._adapters = swaps, adapters
        self._progress = progress
        self._http = _http_server(self.app)
        self._command, self._plan = command, plan
        self._draining: asyncio.Task[None] | None = None
        self.fleet: Fleet | None = None

    async def run(
        self,
        listener: socket.socket,
        *,
        ready: Callable[[str], None],
        drain_s: float,
        beside: Coroutine[None, None, None] | None = None,
    ) -> None:
        """Serve until a signal. ``beside``: what else to do meanwhile.

        Raises `DiagnosticError` if a first engine does not start.
        """
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):  # not the main thread
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.drain, drain_s)
        self.fleet = Fleet(
            self.client, self._command, plan=self._plan, metrics=self.metrics, progress=self._progress
        )  # fmt: skip
        if self.swaps is not None:
            self.swaps.fleet = self.fleet
        url = url_of(listener)
        other = None if beside is None else asyncio.create_task(beside)
        http = asyncio.create_task(self._http.serve(sockets=[listener]))
        starting = asyncio.create_task(self.fleet.start())
        try:
            await asyncio.wait({http, starting}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                ready(url)
            await http
        finally:
            starting.cancel()
            if other is not None:
                other.cancel()
            self._http.should_exit = True
            if self._adapters is not None:
                self._adapters.close()
            await asyncio.gather(http, starting, return_exceptions=True)
            await self.fleet.stop()

    def drain(self, drain_s: float) -> None:
        """Begin to end: finish what is running for so long. A second call ends it at once."""
        loop = asyncio.get_running_loop()
        if self._draining is not None:
            drain_s = 0.0
            self._draining.cancel()
        self.client.draining = True
        self.client.let_in()  # to be told so
        if self.swaps is not None:
            self.swaps.end()
        if self._adapters is not None:
            self._adapters.close()
        self._draining = loop.create_task(self._drain(drain_s))

    async def _drain(self, drain_s: float) -> None:
        self._progress("ending: no new requests; finishing those that run")
        try:
            await asyncio.wait_for(self.client.idle(), drain_s)
        except TimeoutError:
            self.client.abandon_all("the server is ending")
        for operations in (self.swaps, self._adapters):
            if operations is not None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(operations.ended(), _GIVE_UP_S)
        self._http.should_exit = True


class _HttpServer(uvicorn.Server):
    """Leaves the signals to us: while it drains, new requests get an answer, not a closed port."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _http_server(app: FastAPI) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        access_log=False,
        log_config=None,  # whoever starts us has set logging up, or Python's last resort prints warnings
        log_level="warning",
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_FLUSH_S,
        timeout_keep_alive=_KEEP_ALIVE_S,
    )
    return _HttpServer(config)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
