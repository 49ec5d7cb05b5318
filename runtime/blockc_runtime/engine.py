"""The engine: one process that owns executor, scheduler and KV, and repeats four verbs.

In: a plan, a zoo, and requests as frames over a Unix socket. Out: one frame of tokens a step, and
one end a request. Invariant: a request that was submitted ends exactly once as long as the process
lives, and the process does not outlive its server.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import select
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from blockc.diag import DiagnosticError, Diagnostics
from blockc.ir import parse_structure
from blockc.ir.layout import format_bytes, kernel_count
from blockc.plan import ExecutionPlan, load_plan
from blockc.zoo import Zoo
from blockc_runtime.kv.index import KvIndex
from blockc_runtime.limits import engine_limits
from blockc_runtime.memory import MemoryUse, before_loading, before_serving
from blockc_runtime.request import EndEvent, Event, Request, TokensEvent
from blockc_runtime.scheduler import Gauges, Scheduler
from blockc_runtime.step import Executor, Step, StepResult
from blockc_runtime.turn import ReadingScheduler, next_step
from blockc_runtime.wire import (
    Cancel,
    Drain,
    End,
    EngineError,
    FrameBuffer,
    Message,
    ProtocolError,
    Ready,
    Shutdown,
    Stats,
    StatsQuery,
    StepLoad,
    Submit,
    Tokens,
    encode,
)

_RECEIVE_BYTES = 1 << 18
_BLOCKED_POLL_S = 0.002
_ORPHAN_GRACE_S = 3.0
_MESSAGE_CHARS = 4000


class StepScheduler(ReadingScheduler, Protocol):
    """What the loop needs of `scheduler.Scheduler`."""

    def gauges(self) -> Gauges:
        """What `Stats` tells."""

    def admit(self, request: Request, now_s: float) -> Sequence[Event]:
        """Queue a request; its end, if it can never run."""

    def complete(self, step: Step, result: StepResult, now_s: float) -> Sequence[Event]:
        """Take a step's results in."""

    def cancel(self, request: str, /) -> Sequence[Event]:
        """Drop a request, whatever its state; nothing if it is unknown."""


class ServerGoneError(Exception):
    """The other end of the socket was closed."""


class WorkerFailedError(Exception):
    """The executor is spoiled as a whole; only a fresh process helps."""


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


class Engine:
    """The loop. Reads its socket between any two steps, and sleeps on it when there is no work."""

    def __init__(
        self,
        *,
        channel: Channel,
        scheduler: StepScheduler,
        executor: Executor,
        memory: Callable[[], MemoryUse | None] = lambda: None,
        name: Callable[[int], str] = "chain {}".format,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel = channel
        self._name = name  # of a chain, for the log
        self._scheduler = scheduler
        self._executor = executor
        self._memory = memory
        self._clock = clock
        self._unfinished: set[str] = set()
        self._unstarted: set[str] = set()
        self._steps = 0
        self._draining = False
        self._shut_down = False

    def run(self) -> None:
        """Serve until told to end. Raises `ServerGoneError` when the server closes the socket."""
        wait_s: float | None = 0.0
        while not self._take_messages(wait_s):
            ends, step = next_step(self._scheduler, self._executor, self._clock(), on_problem=self._log_problem)
            self._end(ends)
            wait_s = self._idle_s() if step is None else 0.0
            if step is not None:
                self._executor.submit(step)
                result = self._collect()
                events = self._scheduler.complete(step, result, self._clock())
                self._emit(step, events)

    def _log_problem(self, chain: int, problem: str) -> None:
        print(f"{self._name(chain)} cannot be served: {problem}", flush=True)

    def close(self) -> None:
        """Free what the executor holds."""
        self._executor.close()

    def _idle_s(self) -> float | None:
        """How long to sleep on the socket when nothing can run: for good only if nothing waits."""
        return _BLOCKED_POLL_S if self._unfinished else None

    def _collect(self) -> StepResult:
        """Wait for the step. A fault of the whole worker ends the engine instead of its requests.

        The server then starts another one and gives it every unfinished request again.
        """
        result = self._executor.collect()
        for row in result.rows:
            if row.fault is not None and row.fault.scope == "worker":
                raise WorkerFailedError(row.fault.message)
        return result

    def _take_messages(self, wait_s: float | None) -> bool:
        """Act on what has arrived. True: end."""
        if self._draining and not self._unfinished:
            return True
        for message in self._channel.receive(wait_s):
            self._take(message)
        return self._shut_down or (self._draining and not self._unfinished)

    def _take(self, message: Message) -> None:
        match message:
            case Submit(request=request):
                self._admit(request)
            case Cancel(request=request_id):
                self._end(self._scheduler.cancel(request_id))
            case StatsQuery():
                self._channel.send(self._stats())
            case Drain():
                self._draining = True
            case Shutdown():
                self._shut_down = True
            case _:
                raise ProtocolError(f"the server sent {type(message).__name__}")

    def _admit(self, request: Request) -> None:
        if self._draining or request.id in self._unfinished:
            reason = "draining" if self._draining else "a request of this id is running"
            refused = EndEvent(request=request.id, reason="error", message=reason, cached_tokens=0)
            self._channel.send(End(events=(refused,)))
            return
        self._unfinished.add(request.id)
        self._unstarted.add(request.id)
        self._end(self._scheduler.admit(request, self._clock()))

    def _emit(self, step: Step, events: Sequence[Event]) -> None:
        """Send a step's tokens as one frame, and the ends after it in the same write."""
        self._steps += 1
        started: tuple[str, ...] = ()
        if self._unstarted:
            started = tuple(row.request for row in step.rows if row.request in self._unstarted)
            self._unstarted.difference_update(started)
        tokens = Tokens(
            step=step.id,
            load=step_load(step),
            started=started,
            events=tuple(event for event in events if isinstance(event, TokensEvent)),
        )
        ends = self._ended(events)
        self._channel.send(tokens, *((End(events=ends),) if ends else ()))

    def _end(self, events: Sequence[Event]) -> None:
        if ends := self._ended(events):
            self._channel.send(End(events=ends))

    def _ended(self, events: Sequence[Event]) -> tuple[EndEvent, ...]:
        ends = tuple(event for event in events if isinstance(event, EndEvent))
        for end in ends:
            self._unfinished.discard(end.request)
            self._unstarted.discard(end.request)
        return ends

    def _stats(self) -> Stats:
        gauges = self._scheduler.gauges()
        return Stats(
            unfinished=len(self._unfinished),
            steps=self._steps,
            preemptions=gauges.preemptions,
            side_loads=gauges.side_loads,
            pages=gauges.pages,
            memory=self._memory(),
        )


def step_load(step: Step) -> StepLoad:
    """Count what a step holds."""
    return StepLoad(
        rows=len(step.rows),
        tokens=sum(len(row.tokens) for row in step.rows),
        launches=len(step.launches),
        chains=len({row.chain for row in step.rows}),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Connect, load, serve. The exit code is 0 if the server asked for the end or went away."""
    parser = argparse.ArgumentParser(prog="blockc_runtime.engine")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--executor", choices=("torch", "null"), default="torch")
    parser.add_argument("--null-step-s", type=float, default=0.0, help="what a null step takes")
    options = parser.parse_args(arguments)
    # A terminal's Ctrl-C is the server's business: it drains, and we end when it says so.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    before_loading()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(options.socket))
        end_with(connection)
        channel = Channel(connection)
        return serve(channel, lambda: load(options, channel))


def serve(channel: Channel, build: Callable[[], tuple[Engine, Ready]]) -> int:
    """Build an engine and run it; whatever ends it early is told to the server."""
    try:
        engine, ready = build()
        with contextlib.closing(engine):
            channel.send(ready)
            engine.run()
    except ServerGoneError:
        return 0
    except DiagnosticError as error:
        message = "; ".join(item.message for item in error.diagnostics)
        return _fail(channel, next(iter(error.diagnostics)).code.id, message)
    except WorkerFailedError as error:
        return _fail(channel, "BC999", f"the executor failed: {error}")
    except Exception as error:
        traceback.print_exc()
        return _fail(channel, "BC999", f"{type(error).__name__}: {error}")
    return 0


def _fail(channel: Channel, code: str, message: str) -> int:
    """Tell the server, which prints it."""
    with contextlib.suppress(ServerGoneError, ProtocolError):
        channel.send(EngineError(code=code, message=message[:_MESSAGE_CHARS]))
    return 1


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


def load(options: argparse.Namespace, channel: Channel) -> tuple[Engine, Ready]:
    """Load plan, weights and scheduler. Raises `DiagnosticError` for what is wrong with them."""
    began_s = time.monotonic()
    plan = load_plan(options.plan)
    digest = hashlib.sha256(options.plan.read_bytes()).hexdigest()
    _bound_kernels(plan)
    executor, memory = _executor(options, plan)
    limits = engine_limits(plan)
    apps = {app.chain: app.address for app in plan.apps}
    engine = Engine(
        channel=channel, scheduler=Scheduler(limits, KvIndex(limits)), executor=executor, memory=memory,
        name=apps.__getitem__,
    )  # fmt: skip
    before_serving()
    print(f"loaded in {time.monotonic() - began_s:.1f} s", flush=True)
    for line in memory_lines(plan, memory()):
        print(line, flush=True)
    return engine, Ready(plan_digest=digest, capabilities=plan.requires)


def _bound_kernels(plan: ExecutionPlan) -> None:
    """Keep as many compiled kernels as the plan counts. oneDNN reads this once, when torch first multiplies."""
    if plan.target == "cpu":
        count = kernel_count(parse_structure(text) for text in plan.structures.values())
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(count))


def memory_lines(plan: ExecutionPlan, use: MemoryUse | None) -> Iterator[str]:
    """What was loaded beside what the plan says, for the log; and whether the reserve holds the rest."""
    if use is None or len(plan.memory) != 1:
        return
    entry = plan.memory[0]
    loaded = entry.weights_bytes + entry.sides_bytes
    taken, most = format_bytes(use.weights_bytes + use.sides_bytes), format_bytes(use.loading_peak_bytes)
    yield f"weights and fine-tunes take {taken} (planned {format_bytes(loaded)}, at most {most} while loading)"
    later = format_bytes(entry.kv_bytes + entry.workspace_bytes)
    yield f"KV cache and steps will take up to {later} more"
    if use.runtime_bytes:
        needed = format_bytes(use.runtime_bytes)
        short = use.runtime_bytes > entry.reserve_bytes
        yield f"interpreter and libraries take {needed}" + (
            f", more than the device's `reserve` of {format_bytes(entry.reserve_bytes)}" if short else ""
        )


def _executor(options: argparse.Namespace, plan: ExecutionPlan) -> tuple[Executor, Callable[[], MemoryUse | None]]:
    """What runs the steps, and what says how much memory it holds.

    Imported only now: torch takes seconds, and `null` needs none of it.
    """
    from blockc_runtime.capabilities import missing, refusal, spans_devices

    is_null = options.executor == "null"
    if lacking := spans_devices(plan) if is_null else missing(plan):
        problems = Diagnostics()
        problems.report("BC905", refusal(lacking))
        raise DiagnosticError(problems)
    if is_null:
        from blockc_runtime.executor.null import NullExecutor

        return NullExecutor(plan, step_s=options.null_step_s), lambda: None
    from blockc_runtime.executor.torch_ import TorchExecutor
    from blockc_runtime.native import library
    from blockc_runtime.ops import triton_

    print(library.describe() if plan.target == "cpu" else triton_.describe(), flush=True)
    executor = TorchExecutor(plan, Zoo(options.zoo), device=plan.target)
    if plan.target == "cuda":
        print(f"decode steps: {'recorded graphs' if executor.records else 'launched op by op'}", flush=True)
    for app in plan.apps:
        if app.chain in executor.disabled:
            print(f"{app.address} cannot be served: {executor.disabled[app.chain]}", flush=True)
    return executor, executor.memory


if __name__ == "__main__":
    raise SystemExit(main())
