"""The engine: one process that owns executors, schedulers and KV, and repeats four verbs.

In: a plan, a zoo, and requests as frames over a Unix socket. Out: one frame of tokens a step, and
one end a request. Invariant: a request that was submitted ends exactly once as long as the process
lives, and the process does not outlive its server.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from blockc.diag import DiagnosticError
from blockc_runtime.channel import Channel, ServerGoneError, end_with
from blockc_runtime.counts import Counts, LaunchCounts
from blockc_runtime.epoch import Epoch
from blockc_runtime.loading import CrowdedError, LoadedEpoch, Loading, Origin, PlanLostError, load_epoch, memory_lines
from blockc_runtime.memory import before_loading, before_serving
from blockc_runtime.request import EndEvent, Event, Request, TokensEvent
from blockc_runtime.step import Executor, Step, StepResult
from blockc_runtime.turn import next_step
from blockc_runtime.wire.codecs import ProtocolError
from blockc_runtime.wire.messages import (
    Cancel,
    Drain,
    End,
    EngineError,
    Load,
    Loaded,
    LoadFailed,
    Message,
    Ready,
    Retire,
    Shutdown,
    Stats,
    StatsQuery,
    StepLoad,
    Submit,
    Tokens,
)

_BLOCKED_POLL_S = 0.002
_LOADING_POLL_S = 0.01
_MESSAGE_CHARS = 4000


class LoadEpoch(Protocol):
    """Makes a plan ready, as `loading.load_epoch` does."""

    def __call__(self, origin: Origin, /, *, before: Epoch, alone: bool) -> LoadedEpoch:
        """Raises as that does."""


class WorkerFailedError(Exception):
    """The executor is spoiled as a whole; only a fresh process helps."""


class Engine:
    """The loop. Reads its socket between any two steps, and sleeps on it when there is no work.

    While plans are swapped there are several epochs, which take turns, the oldest first. ``load`` makes an epoch ready,
    in a thread beside the steps (`loading.load_epoch`).
    """

    def __init__(
        self,
        *,
        channel: Channel,
        first: Epoch,
        load: LoadEpoch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel = channel
        self._epochs = {first.number: first}
        self._newest = first
        self._load = load
        self._loading: Loading | None = None
        self._clock = clock
        self._epoch_of: dict[str, Epoch] = {}  # of each request that is unfinished
        self._unstarted: set[str] = set()
        self._past = Counts()
        self._launched = LaunchCounts()
        self._steps = 0
        self._draining = False
        self._shut_down = False

    def run(self) -> None:
        """Serve until told to end. Raises `ServerGoneError` when the server closes the socket."""
        wait_s: float | None = 0.0
        while not self._take_messages(wait_s):
            began_s = self._clock()
            worked = self._take_turns()
            if self._loading is not None:
                self._loading.longest_turn_s = max(self._loading.longest_turn_s, self._clock() - began_s)
                self._take_loaded(self._loading)
            wait_s = 0.0 if worked else self._idle_s()

    def close(self) -> None:
        """Free what the executors hold."""
        for epoch in self._epochs.values():
            epoch.executor.close()

    def _take_turns(self) -> bool:
        """A step of each epoch that has one.

        An old one that lacks pages which younger ones hold gets them, and they wait until it is done: they would take
        them again at once.
        """
        worked = False
        for epoch in sorted(self._epochs.values(), key=lambda epoch: epoch.number):
            turned = self._turn(epoch)
            worked = worked or turned
            if epoch is not self._newest and epoch.is_blocked(worked=turned):
                epoch.goes_first = True
                for younger in self._epochs.values():
                    if younger.number > epoch.number:
                        younger.scheduler.give_way()
            if epoch.is_over:
                self._retire(epoch)
            elif epoch.goes_first and epoch.unfinished:
                break
        return worked

    def _turn(self, epoch: Epoch) -> bool:
        """Schedule, run, and send what came of it; False if there was nothing to do.

        Where steps overlap, what is sent came of the step before, and the one that was issued runs meanwhile.
        """

        def on_problem(chain: int, problem: str) -> None:
            print(f"{epoch.name(chain)} cannot be served: {problem}", flush=True)

        def on_segment_problem(segment: int, problem: str) -> None:
            for chain in epoch.chains_through(segment):
                on_problem(chain, problem)

        for request, came_s in epoch.gate.opened():
            self._end(epoch.scheduler.admit(request, came_s))
        ends, step = next_step(
            epoch.scheduler, epoch.executor, self._clock(), on_problem=on_problem,
            on_segment_problem=on_segment_problem,
        )  # fmt: skip
        self._end(ends)
        is_alone = len(self._epochs) == 1
        if step is not None:
            epoch.executor.submit(step)
            epoch.flights.append(step)
            if epoch.overlaps and not is_alone:
                self._past += Counts(waits={"plans": 1})
        worked = bool(epoch.flights)
        self._land(epoch, keep=int(step is not None and epoch.overlaps and is_alone))
        return worked

    def _land(self, epoch: Epoch, *, keep: int = 0) -> None:
        """Wait for steps in flight, all but the last ``keep``, and send what came of them."""
        while len(epoch.flights) > keep:
            result = self._collect(epoch.executor)
            step = epoch.flights.popleft()
            self._launched.add(result.launched)
            self._emit(step, epoch.scheduler.complete(step, result, self._clock()))

    def _idle_s(self) -> float | None:
        """How long to sleep on the socket when nothing can run: for good only if nothing waits."""
        if self._loading is not None:
            return _LOADING_POLL_S
        return _BLOCKED_POLL_S if self._epoch_of else None

    def _collect(self, executor: Executor) -> StepResult:
        """Wait for the step. A fault of the whole worker ends the engine instead of its requests.

        The server then starts another one and gives it every unfinished request again.
        """
        result = executor.collect()
        for row in result.rows:
            if row.fault is not None and row.fault.scope == "worker":
                raise WorkerFailedError(row.fault.message)
        return result

    def _take_messages(self, wait_s: float | None) -> bool:
        """Act on what has arrived. True: end."""
        if self._draining and not self._epoch_of:
            return True
        for message in self._channel.receive(wait_s):
            self._take(message)
        return self._shut_down or (self._draining and not self._epoch_of)

    def _take(self, message: Message) -> None:
        match message:
            case Submit(request=request):
                self._admit(request)
            case Cancel(request=request_id, is_done=is_done):
                epoch = self._epoch_of.get(request_id)
                if epoch is not None and epoch.gate.cancel(request_id):
                    self._end((EndEvent(request=request_id, reason="cancelled", message="", cached_tokens=0),))
                elif epoch is not None:
                    self._end(epoch.scheduler.cancel(request_id, is_done=is_done))
            case StatsQuery():
                self._channel.send(self._stats())
            case Load():
                self._begin_load(message)
            case Retire(epoch=number):
                if number in self._epochs:
                    self._epochs[number].retires = True
            case Drain():
                self._draining = True
            case Shutdown():
                self._shut_down = True
            case _:
                raise ProtocolError(f"the server sent {type(message).__name__}")

    def _begin_load(self, message: Load) -> None:
        """Load one more plan beside the steps. One at a time."""
        for epoch in tuple(self._epochs.values()):
            if epoch.is_over:
                self._retire(epoch)
        problem = None
        if self._load is None or self._loading is not None or message.epoch in self._epochs:
            problem = "another plan is being loaded" if self._loading is not None else "this epoch cannot be loaded"
        elif message.alone and self._epoch_of:
            problem = "requests of the plan before are unfinished"
        if problem is not None or self._load is None:
            self._channel.send(LoadFailed(epoch=message.epoch, code="BC999", message=str(problem)))
            return
        for epoch in self._epochs.values() if message.alone else ():
            self._land(epoch)
        origin = Origin(number=message.epoch, path=Path(message.plan), digest=message.plan_digest)
        self._loading = Loading(origin, partial(self._load, origin, before=self._newest, alone=message.alone))

    def _take_loaded(self, loading: Loading) -> None:
        """Take in an epoch that is ready, or say why there is none."""
        if not loading.done:
            return
        self._loading = None
        number, lost = loading.origin.number, None
        try:
            loaded = loading.result()
        except CrowdedError as error:
            answer: Message = LoadFailed(epoch=number, code="BC401", message=str(error), is_crowded=True)
        except DiagnosticError as error:
            code, message = _told(error)
            answer = LoadFailed(epoch=number, code=code, message=message)
        except Exception as error:
            traceback.print_exc()
            lost = error if isinstance(error, PlanLostError) else None
            text = f"{type(error).__name__}: {error}" if lost is None else str(error)
            answer = LoadFailed(epoch=number, code="BC999", message=text[:_MESSAGE_CHARS])
        else:
            self._epochs[number] = loaded.epoch
            self._newest = self._epochs[max(self._epochs)]
            answer = Loaded(
                epoch=number,
                plan_digest=loaded.digest,
                kept_bytes=loaded.kept_bytes,
                loaded_bytes=loaded.loaded_bytes,
                kv_groups=0 if loaded.epoch.plan is None else len(loaded.epoch.plan.kv_groups),
                kv_kept=loaded.kv_kept,
                load_s=loaded.load_s,
                longest_turn_s=loading.longest_turn_s,
            )
        self._channel.send(answer)
        if lost is not None:
            raise lost

    def _retire(self, epoch: Epoch) -> None:
        """Let a plan go whose last request has ended, or that never came into force."""
        del self._epochs[epoch.number]
        self._newest = self._epochs[max(self._epochs)] if self._epochs else epoch
        self._past += epoch.scheduler.gauges().counts
        epoch.close(self._epochs.values())
        before_serving()

    def _admit(self, request: Request) -> None:
        epoch = self._epochs.get(request.epoch)
        problem = None
        if self._draining:
            problem = "draining"
        elif request.id in self._epoch_of:
            problem = "a request of this id is running"
        elif epoch is None or epoch.retires:
            problem = "the plan that this request is for is not served"
        if problem is not None or epoch is None:
            refused = EndEvent(request=request.id, reason="error", message=str(problem), cached_tokens=0)
            self._channel.send(End(events=(refused,)))
            return
        if epoch.is_in_flight(request.id):
            self._land(epoch)  # a step of one that had this id, and has ended
        self._epoch_of[request.id] = epoch
        epoch.unfinished.add(request.id)
        self._unstarted.add(request.id)
        if not epoch.gate.holds(request, self._clock()):
            self._end(epoch.scheduler.admit(request, self._clock()))

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
            if (epoch := self._epoch_of.pop(end.request, None)) is not None:
                epoch.unfinished.discard(end.request)
            self._unstarted.discard(end.request)
        return ends

    def _stats(self) -> Stats:
        """Pages and memory are those of the newest plan; what only grows is counted over all of them."""
        newest = self._newest.scheduler.gauges()
        return Stats(
            unfinished=len(self._epoch_of),
            steps=self._steps,
            pages=newest.pages,
            counts=sum(
                (epoch.scheduler.gauges().counts for epoch in self._epochs.values()), self._past + self._launched.counts
            ),
            memory=self._newest.memory(),
            sessions=newest.sessions,
            sessions_lost=newest.sessions_lost,
        )


def step_load(step: Step) -> StepLoad:
    """Count what a step holds."""
    return StepLoad(
        rows=len(step.rows),
        tokens=sum(len(row.tokens) for row in step.rows if row.request not in step.parked),
        launches=len(step.launches),
        chains=len({row.chain for row in step.rows}),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Connect, load, serve. The exit code is 0 if the server asked for the end or went away."""
    parser = argparse.ArgumentParser(prog="blockc_runtime.engine")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--epoch", type=int, default=0, help="the plan's number")
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
        return _fail(channel, *_told(error))
    except WorkerFailedError as error:
        return _fail(channel, "BC999", f"the executor failed: {error}")
    except Exception as error:
        traceback.print_exc()
        return _fail(channel, "BC999", f"{type(error).__name__}: {error}")
    return 0


def _told(error: DiagnosticError) -> tuple[str, str]:
    """The first code, and all that is wrong, for the server."""
    message = "; ".join(item.message for item in error.diagnostics)
    return next(iter(error.diagnostics)).code.id, message[:_MESSAGE_CHARS]


def _fail(channel: Channel, code: str, message: str) -> int:
    """Tell the server, which prints it."""
    with contextlib.suppress(ServerGoneError, ProtocolError):
        channel.send(EngineError(code=code, message=message[:_MESSAGE_CHARS]))
    return 1


def load(options: argparse.Namespace, channel: Channel) -> tuple[Engine, Ready]:
    """Load plan, weights and scheduler. Raises `DiagnosticError` for what is wrong with them."""
    first = Origin(number=options.epoch, path=options.plan, digest=None)
    loaded = load_epoch(options, first, before=None, alone=False)
    epoch, plan = loaded.epoch, loaded.epoch.plan
    assert plan is not None
    engine = Engine(channel=channel, first=epoch, load=partial(load_epoch, options))
    print(f"loaded in {loaded.load_s:.1f} s", flush=True)
    for line in memory_lines(plan, epoch.memory()):
        print(line, flush=True)
    return engine, Ready(plan_digest=loaded.digest, capabilities=plan.requires)


if __name__ == "__main__":
    raise SystemExit(main())
