"""The server's view of its engines: requests go in, tokens come out, whichever processes work.

In: engine requests, and the frames of the engines in force. Out: for each HTTP call what has arrived for it.
Invariant: every request ends exactly once; when an engine dies, what was unfinished is given to another that has its
chain, or to the next one, with the tokens it had emitted, so that a stream goes on where it was.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from blockc_runtime.request import EndEvent, FinishReason, Request
from blockc_runtime.server.arrivals import Call, Unavailable
from blockc_runtime.server.dispatch import Dispatch
from blockc_runtime.server.engine_link import EngineLinks, EngineState, EngineUnavailableError
from blockc_runtime.server.metrics import AppMetrics, EngineStats, Metrics
from blockc_runtime.server.tracked import Tracked, overdue
from blockc_runtime.wire.messages import Cancel, End, Message, Submit, Tokens

_STATS_PATIENCE_S = 0.5
_DEADLY = "the engine stopped repeatedly while it worked on this request"
_FAILED = "the engine cannot be started"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """Bounds on unfinished requests, for each engine. ``deaths``: engines a request may outlive without a token.

    ``unfinished``: of all together; who has less than an equal share of them may go beyond it, by that share.
    """

    unfinished: int = 1024
    unfinished_per_tenant: int = 512
    deaths: int = 5


class QueueFullError(Exception):
    """Too much is unfinished to take on more."""


class PlanChangedError(Exception):
    """The plan that requests were made for is not, or will soon not be, the one in force: make them again."""


class EngineClient:
    """See the module's text. Lives on one event loop; nothing here blocks.

    Engines are called by the numbers of their devices; ``dispatch``: of the plan in force.
    """

    def __init__(self, metrics: Metrics, limits: QueueLimits | None = None, dispatch: Dispatch | None = None) -> None:
        self.draining = False  # set once, when the server begins to end
        self.epoch = 0  # of the plan in force
        self.on_past: Callable[[int], None] = lambda epoch: None  # the last request of a plan before has ended
        self._dispatch = {self.epoch: dispatch or Dispatch()}  # of plans in force, or with unfinished requests
        self.links = EngineLinks(metrics)
        self._unfinished_in: Counter[int] = Counter()  # requests, and calls that keep the plan
        self._kept: Counter[int] = Counter()  # those calls
        self._lost: set[tuple[int, int]] = set()  # engines, with kept plans that they cannot have again
        self._held: asyncio.Event | None = None
        self._outside = 0
        self._metrics = metrics
        self._limits = limits or QueueLimits()
        self._tracked: dict[str, Tracked] = {}
        self._unfinished_of: Counter[str] = Counter()
        self._fresh: dict[Call, None] = {}  # calls with tokens that have not been offered
        self._idle = asyncio.Event()
        self._idle.set()
        for engine in self.dispatch.engines:
            self.links.expect(engine, self.dispatch.device(engine))
            self.dispatch.lost(engine)  # it is not there yet

    @property
    def dispatch(self) -> Dispatch:
        """Who works on what, of the plan in force."""
        return self._dispatch[self.epoch]

    # What routes call

    @property
    def state(self) -> EngineState:
        """That of the best engine of the plan in force, and of the worst until all have been ready once.

        One that is lost later is missed by its own apps only: their requests wait for the next one, or are refused.
        """
        engines = self.dispatch.engines
        return self.links.state_of(engines, worst=not self.links.were_ready(engines))

    @property
    def serving(self) -> bool:
        """Whether new requests would be worked on now."""
        return self.state is EngineState.READY and not self.draining

    def check_room(self, tenant: str, count: int) -> None:
        """Raise `QueueFullError` or `EngineUnavailableError` if so many cannot be taken on."""
        if self.draining or self.links.state_of(self.dispatch.engines) is EngineState.FAILED:
            raise EngineUnavailableError
        total, of_tenant = len(self._tracked) + count, self._unfinished_of[tenant] + count
        limits, engines = self._limits, len(self.dispatch.engines)
        if of_tenant > limits.unfinished_per_tenant * engines:
            raise QueueFullError
        most = limits.unfinished * engines
        if total > most and of_tenant * self._tenants_with(tenant) > most:
            raise QueueFullError

    async def admitted(self) -> None:
        """Wait while new requests are held back. Raises `QueueFullError` if too many do."""
        while self._held is not None:
            if self._outside >= self._limits.unfinished * len(self.dispatch.engines):
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
            if any(self._is_lost(request) for request in requests):
                raise EngineUnavailableError
        elif self._held is not None or any(request.epoch != self.epoch for request in requests):
            raise PlanChangedError
        self.check_room(tenant, len(requests))
        if any(self._state_for(request) is EngineState.FAILED for request in requests):
            raise EngineUnavailableError
        now_s = time.monotonic()
        call = Call([request.id for request in requests], now_s)
        for request in requests:
            engine = self._dispatch[request.epoch].route(request)
            tracked = Tracked(
                request=request, engine=engine, tenant=tenant, call=call, metrics=metrics, submitted_s=now_s
            )
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
        if tracked is not None:
            self.links[tracked.engine].tell(Cancel(request=request, is_done=reason == "stop"))

    async def stats(self) -> tuple[EngineStats, ...]:
        """Ask all engines that are there how they are. Raises `EngineUnavailableError` where there is none."""
        return await self.links.stats(self.dispatch.groups)

    async def stats_within(self, patience_s: float = _STATS_PATIENCE_S) -> tuple[EngineStats, ...]:
        """Ask, but do not wait long for those that are in the middle of a long step."""
        try:
            return await self.links.stats(self.dispatch.groups, patience_s)
        except EngineUnavailableError:
            return ()

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

    def move_to(self, epoch: int, dispatch: Dispatch | None = None) -> None:
        """From here on the plan in force is this one, which its engines have. What is unfinished stays where it is."""
        before, self.epoch = self.epoch, epoch
        self._dispatch[epoch] = dispatch or self._dispatch[before]
        for engine in self.dispatch.engines:
            self.links.expect(engine, self.dispatch.device(engine))
            self.links[engine].open.add(epoch)
        if not self._unfinished_in[before]:
            self._pass(before)

    # What supervisors call

    def attach(self, engine: int, send: Callable[[Message], None], epoch: int) -> None:
        """Give everything unfinished of a plan to an engine that is ready and has that plan."""
        self.links.attach(engine, send)
        self.open(engine, epoch)

    def open(self, engine: int, epoch: int) -> None:
        """The engine has this plan, too."""
        self.links[engine].open.add(epoch)
        if epoch not in self._dispatch:
            if epoch < self.epoch:
                self._pass(epoch)  # all that it was given again for has ended meanwhile
            return
        self._dispatch[epoch].back(engine)
        for tracked in tuple(self._tracked.values()):
            if tracked.request.epoch == epoch:
                if tracked.engine != engine and self.links[tracked.engine].send is None:
                    self._move(tracked)
                elif tracked.engine == engine:
                    self._submit(tracked)
        if epoch != self.epoch and not self._unfinished_in[epoch]:
            self._pass(epoch)

    def lacking(self, engine: int) -> list[int]:
        """Plans that an engine is to have and has not: they are in force, or have unfinished requests."""
        wanted = {self.epoch, *(epoch for epoch, count in self._unfinished_in.items() if count)}
        there = self.links[engine].open
        return sorted(epoch for epoch in wanted - there if engine in self._dispatch[epoch].engines)

    def abandon(self, engine: int, epoch: int, message: str) -> None:
        """End everything of a plan that waits for an engine and that no other can do, with a declared error."""
        if self._kept[epoch]:
            self._lost.add((engine, epoch))
        own = [tracked for tracked in self._tracked.values() if tracked.request.epoch == epoch]
        self._dispatch[epoch].lost(engine)
        for tracked in own:
            if tracked.engine == engine:
                self._move(tracked)
        self._abandon([tracked for tracked in own if tracked.engine == engine], message)

    def detach(self, engine: int) -> None:
        """Lose an engine. Its requests go to others that have their chains, or wait for the next one.

        Those that outlived too many engines end here: one of them may be why.
        """
        if not self.links.detach(engine):
            return
        own = [tracked for tracked in self._tracked.values() if tracked.engine == engine]
        for tracked in own:
            tracked.deaths += 1
        self._abandon([tracked for tracked in own if tracked.deaths >= self._limits.deaths], _DEADLY)
        self._leave(engine)

    def give_up(self, engine: int) -> None:
        """There will be no engine any more on this device: end everything that no other can do."""
        self.detach(engine)
        self.links[engine].state = EngineState.FAILED
        self._leave(engine)
        # Those of engines that are starting, too, wait where they are until one is there.
        self._abandon(
            [one for one in self._tracked.values() if self._state_for(one.request) is EngineState.FAILED], _FAILED
        )

    def abandon_all(self, message: str) -> None:
        """End everything unfinished with a declared error."""
        self._abandon(tuple(self._tracked.values()), message)

    def receive(self, engine: int, message: Message) -> None:
        """Take in a frame of an engine in force. Raises `ProtocolError` for what no engine says."""
        match message:
            case Tokens():
                self._on_tokens(message)
            case End(events=events):
                for event in events:
                    self._on_end(event)
            case _:
                self.links[engine].take(message)

    def offer(self) -> None:
        """Let readers have the tokens that frames brought, once all frames that came together are taken in."""
        fresh, self._fresh = self._fresh, {}
        for call in fresh:
            call.offer()

    # Inside

    def _state_for(self, request: Request) -> EngineState:
        return self.links.state_of(self._dispatch[request.epoch].engines_of(request.chain))

    def _is_lost(self, request: Request) -> bool:
        engines = self._dispatch[request.epoch].engines_of(request.chain)
        return all((engine, request.epoch) in self._lost for engine in engines)

    def _leave(self, engine: int) -> None:
        """Nothing goes to an engine any more, and what is there goes to others, as far as it can."""
        for dispatch in self._dispatch.values():
            dispatch.lost(engine)
        for tracked in tuple(self._tracked.values()):  # those whose end was lost with the engine end here
            if tracked.engine == engine:
                self._move(tracked)

    def _move(self, tracked: Tracked) -> None:
        """To another engine, if there is one in service.

        What has seen two engines die in a row may be why: it waits for its own, so that it does not go through all.
        """
        if tracked.deaths > 1 and self.links[tracked.engine].state is not EngineState.FAILED:
            return
        other = self._dispatch[tracked.request.epoch].hand_over(tracked.request.id, emitted=len(tracked.emitted))
        if other is not None:
            tracked.engine, tracked.is_read = other, False
            self._submit(tracked)

    def _tenants_with(self, tenant: str) -> int:
        """Tenants that have anything unfinished, this one included."""
        return sum(1 for other, count in self._unfinished_of.items() if count and other != tenant) + 1

    def _submit(self, tracked: Tracked) -> None:
        link = self.links[tracked.engine]
        if tracked.request.epoch not in link.open:
            return
        request, emitted = tracked.request, tracked.emitted
        if emitted:
            if reason := overdue(request, emitted):  # its end was lost with the engine
                self._end(
                    tracked,
                    EndEvent(request=request.id, reason=reason, message="", cached_tokens=0),
                )
                return
            request = replace(request, prompt=request.prompt + tuple(emitted), emitted=len(emitted))
        link.tell(Submit(request=self._dispatch[request.epoch].for_engine(tracked.engine, request)))

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
            if event.tokens and not tracked.is_read:
                tracked.is_read = True
                self._dispatch[tracked.request.epoch].started(event.request)
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

    def _end(self, tracked: Tracked, event: EndEvent) -> None:
        self._forget(event.request, event.reason)
        tracked.call.put(event)

    def _abandon(self, requests: Iterable[Tracked], message: str) -> None:
        for tracked in requests:
            request = tracked.request.id
            self._forget(request, "error")
            self.links[tracked.engine].tell(Cancel(request=request))
            tracked.call.put(Unavailable(request=request, message=message))

    def _forget(self, request: str, reason: FinishReason) -> Tracked | None:
        tracked = self._tracked.pop(request, None)
        if tracked is None:
            return None
        tracked.call.unfinished.discard(request)
        self._unfinished_of[tracked.tenant] -= 1
        is_whole = reason in ("stop", "length")
        self._dispatch[tracked.request.epoch].ended(tracked.request, tracked.emitted if is_whole else ())
        self._done_in(tracked.request.epoch)
        tracked.observe_end(reason)
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
        self._dispatch.pop(epoch, None)
        for link in self.links.values():
            link.open.discard(epoch)
        self._lost = {(engine, other) for engine, other in self._lost if other != epoch}
        self.on_past(epoch)
