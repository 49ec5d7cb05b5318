"""The server's view of the engine: requests go in, tokens come out, whichever process works.

In: engine requests, and the frames of the engine in force. Out: for each HTTP call what has arrived
for it. Invariant: every request ends exactly once; when an engine dies, what was unfinished is
given to the next one with the tokens it had emitted, so that a stream goes on where it was.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum

from blockc_runtime.request import EndEvent, FinishReason, Request
from blockc_runtime.server.arrivals import Call, Unavailable
from blockc_runtime.server.metrics import AppMetrics, Metrics
from blockc_runtime.wire.codecs import ProtocolError
from blockc_runtime.wire.messages import Cancel, End, Message, Stats, StatsQuery, Submit, Tokens

_STATS_PATIENCE_S = 0.5


class EngineState(Enum):
    """Whether requests are being worked on."""

    STARTING = "starting"  # also between an engine's death and its successor
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """Bounds on unfinished requests. ``deaths``: engines a request may outlive without a token.

    ``unfinished``: of all together; who has less than an equal share of them may go beyond it, by that share.
    """

    unfinished: int = 1024
    unfinished_per_tenant: int = 512
    deaths: int = 5


class QueueFullError(Exception):
    """Too much is unfinished to take on more."""


class EngineUnavailableError(Exception):
    """There is no engine and there will be none, or the server is ending."""


class PlanChangedError(Exception):
    """The plan that requests were made for is not, or will soon not be, the one in force: make them again."""


@dataclass(slots=True, kw_only=True)
class _Tracked:
    """One unfinished request."""

    request: Request
    tenant: str
    call: Call
    metrics: AppMetrics
    submitted_s: float
    emitted: list[int] = field(default_factory=list)
    first_token_s: float | None = None
    started: bool = False
    deaths: int = 0


class EngineClient:
    """See the module's text. Lives on one event loop; nothing here blocks."""

    def __init__(self, metrics: Metrics, limits: QueueLimits | None = None) -> None:
        self.state = EngineState.STARTING
        self.draining = False  # set once, when the server begins to end
        self.epoch = 0  # of the plan in force
        self.on_past: Callable[[int], None] = lambda epoch: None  # the last request of a plan before has ended
        self._open: set[int] = set()  # epochs that the engine has
        self._unfinished_in: Counter[int] = Counter()  # requests, and calls that keep the plan
        self._kept: Counter[int] = Counter()  # those calls
        self._lost: set[int] = set()  # kept plans that no engine can have again
        self._held: asyncio.Event | None = None
        self._outside = 0
        self._metrics = metrics
        self._limits = limits or QueueLimits()
        self._tracked: dict[str, _Tracked] = {}
        self._unfinished_of: Counter[str] = Counter()
        self._fresh: dict[Call, None] = {}  # calls with tokens that have not been offered
        self._send: Callable[[Message], None] | None = None
        self._stats_waiters: list[asyncio.Future[Stats]] = []
        self._idle = asyncio.Event()
        self._idle.set()

    # What routes call

    @property
    def serving(self) -> bool:
        """Whether new requests would be worked on now."""
        return self.state is EngineState.READY and not self.draining

    def check_room(self, tenant: str, count: int) -> None:
        """Raise `QueueFullError` or `EngineUnavailableError` if so many cannot be taken on."""
        if self.draining or self.state is EngineState.FAILED:
            raise EngineUnavailableError
        total, of_tenant = len(self._tracked) + count, self._unfinished_of[tenant] + count
        limits = self._limits
        if of_tenant > limits.unfinished_per_tenant:
            raise QueueFullError
        if total > limits.unfinished and of_tenant * self._tenants_with(tenant) > limits.unfinished:
            raise QueueFullError

    async def admitted(self) -> None:
        """Wait while new requests are held back. Raises `QueueFullError` if too many do."""
        while self._held is not None:
            if self._outside >= self._limits.unfinished:
                raise QueueFullError
            self._outside += 1
            try:
                await self._held.wait()
            finally:
                self._outside -= 1

    @contextmanager
    def keeping(self, epoch: int) -> Iterator[None]:
        """Have a plan stay for a call that comes with more requests for it (`submit`, ``is_more``)."""
        self._unfinished_in[epoch] += 1
        self._kept[epoch] += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._kept[epoch] -= 1
            self._done_in(epoch)

    def submit(self, requests: Sequence[Request], *, tenant: str, metrics: AppMetrics, is_more: bool = False) -> Call:
        """Take on the requests of one call, all or none. Raises as `check_room` does, and `PlanChangedError`.

        ``is_more``: of a call whose plan is kept; it ends on that, whatever is in force.
        """
        if is_more:
            if any(request.epoch in self._lost for request in requests):
                raise EngineUnavailableError
        elif self._held is not None or any(request.epoch != self.epoch for request in requests):
            raise PlanChangedError
        self.check_room(tenant, len(requests))
        now_s = time.monotonic()
        call = Call([request.id for request in requests], now_s)
        for request in requests:
            tracked = _Tracked(request=request, tenant=tenant, call=call, metrics=metrics, submitted_s=now_s)
            self._tracked[request.id] = tracked
            metrics.waiting.inc()
            metrics.prompt_tokens.inc(len(request.prompt))
            self._unfinished_in[request.epoch] += 1
            self._submit(tracked)
        self._unfinished_of[tenant] += len(requests)
        self._idle.clear()
        return call

    def cancel(self, call: Call) -> None:
        """Stop all work of a call; its reader finds it ended."""
        for request in tuple(call.unfinished):
            self.finish(request, "cancelled")
        call.wake()

    def finish(self, request: str, reason: FinishReason = "stop") -> None:
        """End one request from this side: its client left, or a stop string was found."""
        tracked = self._forget(request, reason)
        if tracked is not None and self._send is not None:
            self._send(Cancel(request=request, is_done=reason == "stop"))

    async def stats(self) -> Stats:
        """Ask the engine how it is."""
        if self._send is None:
            raise EngineUnavailableError
        waiter: asyncio.Future[Stats] = asyncio.get_running_loop().create_future()
        self._stats_waiters.append(waiter)
        self._send(StatsQuery())
        return await waiter

    async def stats_within(self, patience_s: float = _STATS_PATIENCE_S) -> Stats | None:
        """Ask, but do not wait long: None if there is no engine, or it is in the middle of a long step."""
        asking = asyncio.create_task(self.stats())  # goes on by itself: answers come in the order of questions
        await asyncio.wait({asking}, timeout=patience_s)
        answered = asking.done() and not asking.cancelled() and asking.exception() is None
        return asking.result() if answered else None

    async def idle(self) -> None:
        """Wait until nothing is unfinished."""
        await self._idle.wait()

    # What a swap of plans calls

    def hold(self) -> None:
        """Take on nothing new until `let_in`; nobody is refused for that."""
        self._held = self._held or asyncio.Event()

    def let_in(self) -> None:
        """Take on what was held back."""
        if self._held is not None:
            self._held.set()
            self._held = None

    def move_to(self, epoch: int) -> None:
        """From here on the plan in force is this one, which the engine has. What is unfinished stays where it is."""
        before, self.epoch = self.epoch, epoch
        self._open.add(epoch)
        if not self._unfinished_in[before]:
            self._pass(before)

    # What the supervisor calls

    def attach(self, send: Callable[[Message], None], epoch: int) -> None:
        """Give everything unfinished of a plan to an engine that is ready and has that plan."""
        self._send = send
        self.state = EngineState.READY
        self._metrics.engine_up.set(1)
        self._open.clear()
        self.open(epoch)

    def open(self, epoch: int) -> None:
        """The engine has this plan, too."""
        self._open.add(epoch)
        for tracked in tuple(self._tracked.values()):
            if tracked.request.epoch == epoch:
                self._submit(tracked)
        if epoch != self.epoch and not self._unfinished_in[epoch]:
            self._pass(epoch)  # all that it was given again for has ended meanwhile

    def lacking(self) -> list[int]:
        """Plans that the engine does not have and that are in force, or have unfinished requests."""
        wanted = {self.epoch, *(epoch for epoch, count in self._unfinished_in.items() if count)}
        return sorted(wanted - self._open)

    def abandon(self, epoch: int, message: str) -> None:
        """End everything unfinished of a plan with a declared error."""
        if self._kept[epoch]:
            self._lost.add(epoch)
        self._abandon([t for t in tuple(self._tracked.values()) if t.request.epoch == epoch], message)

    def detach(self) -> None:
        """Lose the engine. Requests that outlived too many end here: one of them may be why."""
        if self._send is None:
            return
        self._send = None
        self._open.clear()
        self.state = EngineState.STARTING
        self._metrics.engine_up.set(0)
        for waiter in self._stats_waiters:
            waiter.cancel()
        self._stats_waiters.clear()
        for tracked in self._tracked.values():
            tracked.deaths += 1
        fatal = self._limits.deaths
        self._abandon(
            (t for t in tuple(self._tracked.values()) if t.deaths >= fatal),
            "the engine stopped repeatedly while it worked on this request",
        )

    def give_up(self) -> None:
        """There will be no engine any more: end everything."""
        self.detach()
        self.state = EngineState.FAILED
        self.abandon_all("the engine cannot be started")

    def abandon_all(self, message: str) -> None:
        """End everything unfinished with a declared error."""
        self._abandon(tuple(self._tracked.values()), message)

    def receive(self, message: Message) -> None:
        """Take in a frame of the engine in force."""
        match message:
            case Tokens():
                self._on_tokens(message)
            case End(events=events):
                for event in events:
                    self._on_end(event)
            case Stats():
                if self._stats_waiters:
                    self._stats_waiters.pop(0).set_result(message)
            case _:
                raise ProtocolError(f"the engine sent {type(message).__name__}")

    def offer(self) -> None:
        """Let readers have the tokens that frames brought, once all frames that came together are taken in."""
        fresh, self._fresh = self._fresh, {}
        for call in fresh:
            call.offer()

    # Inside

    def _tenants_with(self, tenant: str) -> int:
        """Tenants that have anything unfinished, this one included."""
        return sum(1 for other, count in self._unfinished_of.items() if count and other != tenant) + 1

    def _submit(self, tracked: _Tracked) -> None:
        if self._send is None or tracked.request.epoch not in self._open:
            return
        request, emitted = tracked.request, tracked.emitted
        if emitted:
            if reason := _overdue(request, emitted):  # its end was lost with the engine
                self._end(
                    tracked,
                    EndEvent(request=request.id, reason=reason, message="", cached_tokens=0),
                )
                return
            request = replace(request, prompt=request.prompt + tuple(emitted), emitted=len(emitted))
        self._send(Submit(request=request))

    def _on_tokens(self, frame: Tokens) -> None:
        self._metrics.observe_step(frame.load)
        for request in frame.started:
            tracked = self._tracked.get(request)
            if tracked is not None and not tracked.started:
                tracked.started = True
                if tracked.call.started_s is None:
                    tracked.call.started_s = time.monotonic()
                tracked.metrics.waiting.dec()
                tracked.metrics.running.inc()
        for event in frame.events:
            tracked = self._tracked.get(event.request)
            if tracked is None:  # cancelled while the step was running
                continue
            if tracked.first_token_s is None and event.tokens:
                now_s = tracked.first_token_s = time.monotonic()
                tracked.metrics.first_token(now_s - tracked.submitted_s, now_s=now_s)
                if tracked.call.first_token_s is None:
                    tracked.call.first_token_s = now_s
            tracked.deaths = 0
            tracked.emitted.extend(event.tokens)
            tracked.metrics.generation_tokens.inc(len(event.tokens))
            tracked.call.add(event)
            self._fresh[tracked.call] = None

    def _on_end(self, event: EndEvent) -> None:
        tracked = self._tracked.get(event.request)
        if tracked is not None:
            tracked.metrics.cache_queries.inc(len(tracked.request.prompt))
            tracked.metrics.cache_hits.inc(event.cached_tokens)
            self._end(tracked, event)

    def _end(self, tracked: _Tracked, event: EndEvent) -> None:
        self._forget(event.request, event.reason)
        tracked.call.put(event)

    def _abandon(self, requests: Iterable[_Tracked], message: str) -> None:
        for tracked in requests:
            request = tracked.request.id
            self._forget(request, "error")
            if self._send is not None:
                self._send(Cancel(request=request))
            tracked.call.put(Unavailable(request=request, message=message))

    def _forget(self, request: str, reason: FinishReason) -> _Tracked | None:
        tracked = self._tracked.pop(request, None)
        if tracked is None:
            return None
        tracked.call.unfinished.discard(request)
        self._unfinished_of[tracked.tenant] -= 1
        self._done_in(tracked.request.epoch)
        self._observe_end(tracked, reason)
        return tracked

    def _done_in(self, epoch: int) -> None:
        """One request of a plan, or a call that kept it, has ended."""
        self._unfinished_in[epoch] -= 1
        if not self._unfinished_in[epoch] and epoch != self.epoch:
            self._pass(epoch)
        if not self._tracked and not self._kept.total():
            self._idle.set()

    def _pass(self, epoch: int) -> None:
        """A plan is not in force any more, and nothing of it is unfinished."""
        del self._unfinished_in[epoch], self._kept[epoch]
        self._open.discard(epoch)
        self._lost.discard(epoch)
        self.on_past(epoch)

    def _observe_end(self, tracked: _Tracked, reason: FinishReason) -> None:
        metrics, now_s = tracked.metrics, time.monotonic()
        (metrics.running if tracked.started else metrics.waiting).dec()
        metrics.finish(reason)
        metrics.e2e_s.observe(now_s - tracked.submitted_s)
        following = len(tracked.emitted) - 1
        if tracked.first_token_s is not None and following > 0:
            metrics.tpot_s.observe((now_s - tracked.first_token_s) / following)


def _overdue(request: Request, emitted: Sequence[int]) -> FinishReason | None:
    """Return why a request should have ended after ``emitted``, if it should have."""
    if emitted[-1] in request.stop_token_ids:
        return "stop"
    return "length" if len(emitted) >= request.max_tokens else None
