"""`Scheduler`: keeps the requests, issues steps, takes results in.

In: requests, cancellations, results, and the time as an argument. Out: steps, and the events of each request: tokens
in order, then exactly one end. Invariant: a request is in one state (`live_request.State`); it holds pages exactly
while it runs, or, if it ended under a step in flight, until that step completes; what that draws for it is nobody's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from blockc_runtime.counts import Counts
from blockc_runtime.kv.index import KvIndex
from blockc_runtime.limits import EngineLimits
from blockc_runtime.request import EndEvent, Event, FinishReason, Request, TokensEvent
from blockc_runtime.scheduler.admission import Admission
from blockc_runtime.scheduler.draft import StepDraft
from blockc_runtime.scheduler.fair_queue import FairQueue
from blockc_runtime.scheduler.gauges import Gauges
from blockc_runtime.scheduler.launches import LaunchPlan
from blockc_runtime.scheduler.live_request import LiveRequest
from blockc_runtime.scheduler.residents import Residents
from blockc_runtime.scheduler.sessions import Sessions
from blockc_runtime.step import Fault, Feed, Row, RowResult, SegmentTurn, Step, StepResult


@dataclass(slots=True, kw_only=True)
class _InFlight:
    """A step that was issued. ``is_void``: a worker was lost since, what it computed is gone."""

    items: tuple[LiveRequest, ...]
    is_void: bool = False


class Scheduler:
    """See the package's text.

    ``max_waiting`` bounds the queue of each tenant, not of all together: nobody's backlog gets others refused.
    ``max_running`` bounds the requests that hold pages; more than the plan's rows a step are of use with steps in
    flight. A request that was in ``worker_tries`` steps under which the worker was lost ends with an error; before
    that it is computed again. ``served``: what tenants were served before, as `service` says it; ``sessions``: those of
    the engine, where other plans are in service, too.
    """

    def __init__(
        self,
        limits: EngineLimits,
        kv: KvIndex,
        *,
        epoch: int = 0,
        max_waiting: int = 1024,
        max_running: int | None = None,
        worker_tries: int = 3,
        served: Sequence[float] = (),
        sessions: Sessions | None = None,
    ) -> None:
        self._limits = limits
        self._kv = kv
        self._epoch = epoch
        self._max_running = limits.max_rows if max_running is None else max_running
        self._worker_tries = worker_tries
        self._queue = FairQueue(limits, served)
        self._residents = Residents(limits)
        self._admission = Admission(limits, kv, queue=self._queue, residents=self._residents, max_waiting=max_waiting)
        self.sessions = Sessions() if sessions is None else sessions
        self._launch_plan = LaunchPlan(limits)
        self._live: dict[str, LiveRequest] = {}  # not ended, or ended under a step in flight
        self._running: dict[str, LiveRequest] = {}
        self._in_flight: dict[int, _InFlight] = {}
        self._all_decoded = True  # in the last step; if not, none goes before those who decode
        self._now_s = 0.0
        self._steps = 0
        self._preemptions = 0
        self._residency_wait_s = 0.0
        self._overlapped = 0
        self._waits: Counter[str] = Counter()

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended, or any step is in flight."""
        return bool(self._running or self._in_flight or len(self._queue))

    @property
    def running(self) -> int:
        """Requests that hold pages and have not ended."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait to start or to start again."""
        return len(self._queue)

    @property
    def is_reading(self) -> bool:
        """Whether anything that requests wait for is being read."""
        return self._residents.is_reading

    @property
    def service(self) -> tuple[float, ...]:
        """Virtual counter of each tenant (see `fair_queue`)."""
        return tuple(self._queue.counters)

    def gauges(self) -> Gauges:
        """Return the state for metrics."""
        return Gauges(
            running=self.running,
            waiting=self.waiting,
            steps_in_flight=len(self._in_flight),
            steps=self._steps,
            pages=self._kv.usage(),
            counts=Counts(
                preemptions=self._preemptions,
                side_loads=self._residents.loads,
                block_loads=self._residents.room.loads,
                block_evictions=self._residents.room.evictions,
                residency_wait_s=self._residency_wait_s,
                overlapped=self._overlapped,
                waits=dict(self._waits),
            ),
            sessions=len(self.sessions),
            sessions_lost=self.sessions.lost,
        )

    def admit(self, request: Request, now_s: float = 0.0) -> tuple[Event, ...]:
        """Queue a request; its end, if it can never run. Raises ValueError if the id is in use."""
        if request.id in self._live:
            raise ValueError(f"request {request.id!r} is here already")
        problem = self._admission.problem(request)
        if problem is not None:
            return (_end(request.id, "error", problem),)
        if request.emitted >= request.max_tokens:
            return (_end(request.id, "length"),)
        item = self._admission.item(request, now_s)
        self._live[request.id] = item
        self._queue.enter(item)
        return ()

    def schedule(self, now_s: float) -> Step | None:
        """Choose the rows of the next step; None if nothing can run before another step is done.

        Requests of which a step in flight has a row are passed over, unless `EngineLimits.overlaps`.
        """
        self._now_s = max(self._now_s, now_s)
        self.sessions.expire(now_s)
        self._residents.room.begin(self._queue.waiting_of)
        running = sorted(self._running.values(), key=self._queue.turn)
        draft = StepDraft(
            limits=self._limits, kv=self._kv, queue=self._queue, residents=self._residents, running=running,
            max_running=self._max_running, preempt=self._preempt, now_s=now_s,
        )  # fmt: skip
        draft.make_places(start=self._start)
        if draft.waits_for is None:
            if self._all_decoded:
                draft.pick_texts()
            self._all_decoded = draft.pick_decodes()
        if draft.waits_for is not None:
            self._waits[draft.waits_for] += 1
            return None
        draft.pick_prefills(start=self._start)
        if not draft.picks and running and not self._in_flight:
            draft.unblock()
        return self._issue(draft.picks) if draft.picks else None

    def complete(self, step: Step, result: StepResult, now_s: float) -> tuple[Event, ...]:
        """Take a step's results in. Those of requests that ended meanwhile, and of unknown steps, are dropped."""
        self._now_s = now_s
        flight = self._in_flight.pop(step.id, None)
        if flight is None:
            return ()
        fault = _worker_fault(step, result)
        for item in flight.items:
            if item.step != step.id:
                continue  # a later one has a row of it, too
            item.step = None
            item.waits = False
            if item.state == "ended":
                self._forget(item)
            elif flight.is_void:
                self._return(item)
        if flight.is_void:
            return ()
        if fault is not None:
            return self._lose_worker(flight, fault)
        events: list[Event] = []
        for item, row, outcome in zip(flight.items, step.rows, result.rows, strict=True):
            if item.state == "running":
                self._settle(item, row, outcome, events, is_part=row.blocks is not None and row.request in step.parked)
        return tuple(events)

    def cancel(self, request_id: str, now_s: float = 0.0, *, is_done: bool = False) -> tuple[Event, ...]:
        """End a request, whatever it is doing; nothing if it is unknown or has ended.

        ``is_done``: it has all that it wants, and its session pauses.
        """
        del now_s
        item = self._live.get(request_id)
        if item is None or item.state == "ended":
            return ()
        return (self._finish(item, "stop" if is_done else "cancelled"),)

    def give_way(self) -> None:
        """All that runs and is in no step in flight gives its pages back and waits again: another plan needs them."""
        for item in tuple(self._running.values()):
            if item.step is None:
                self._preempt(item)

    def take_wanted(self) -> Sequence[int]:
        """Chains whose sides the executor should begin to read."""
        return self._residents.take_wanted()

    def arrived(self, chain: int, problem: str | None = None) -> tuple[Event, ...]:
        """The sides of a chain have been read; with a problem, its requests end."""
        self._residents.arrived(chain, problem)
        return () if problem is None else self._end_unreadable()

    def take_turns(self) -> Sequence[SegmentTurn]:
        """Segments whose weights the executor should begin to read, and those that it should let go for them."""
        return self._residents.room.take_wanted()

    def brought(self, segment: int, problem: str | None = None) -> tuple[Event, ...]:
        """The weights of a segment have been read; with a problem, the requests of all its chains end."""
        self._residents.room.arrived(segment, problem)
        return () if problem is None else self._end_unreadable()

    def _end_unreadable(self) -> tuple[Event, ...]:
        """End those that wait for what cannot be read."""
        waiting = [item for item in self._live.values() if item.state == "waiting"]
        told = [(item, self._residents.problem(item.request.chain)) for item in waiting]
        return tuple(self._finish(item, "error", message) for item, message in told if message is not None)

    def _start(self, item: LiveRequest, reused: int) -> None:
        """A waiting request runs from here on, from its first token without KV."""
        item.state = "running"
        item.computed = reused
        del item.scores[reused * item.token_classes :]
        if item.lacked_s is not None:
            self._residency_wait_s += self._now_s - item.lacked_s
            item.lacked_s = None
        self._running[item.id] = item
        self._queue.leave(item)
        self.sessions.resume(item.request)
        if item.cached is None:
            item.cached = min(max(0, reused - item.virtual), len(item.request.prompt))
        self._queue.charge_prompt(item, until=reused)

    def _preempt(self, item: LiveRequest) -> None:
        self._preemptions += 1
        self._return(item)

    def _return(self, item: LiveRequest) -> None:
        """A running request gives its pages back and waits again, prompt and outputs kept."""
        self._kv.release(item.id)
        self._residents.release(item.request.chain)
        del self._running[item.id]
        item.state = "waiting"
        item.computed = item.ahead = item.due = 0
        item.chunk = None
        self._queue.put_back(item)

    def _issue(self, picks: list[tuple[LiveRequest, int]]) -> Step:
        """Make a step of the picks, rows of one chain side by side."""
        rank = self._launch_plan.rank
        picks.sort(key=lambda pick: rank(pick[0].request.chain))
        rows = tuple([self._row(item, count) for item, count in picks])
        self._steps += 1
        self._overlapped += bool(self._in_flight)
        for index, (item, _) in enumerate(picks):
            self._count_on(item, rows[index], index)
        self._in_flight[self._steps] = _InFlight(items=tuple([item for item, _ in picks]))
        return Step(
            id=self._steps,
            epoch=self._epoch,
            rows=rows,
            launches=self._launch_plan.launches(tuple([(row.chain, row.blocks) for row in rows])),
            fills=self._residents.take_fills(),
            parked=self._parked() if self._limits.prefill_parts > 1 else (),
        )

    def _row(self, item: LiveRequest, count: int) -> Row:
        blocks = None if item.chunk is None else item.chunk.blocks(self._limits.chains[item.request.chain].blocks)
        start = item.reached
        return item.row(count, self._kv.tables(item.id, start + count, start=start), blocks)

    def _count_on(self, item: LiveRequest, row: Row, index: int) -> None:
        """A row is in flight: what it will have done is where the next one goes on."""
        item.step = self._steps
        if item.chunk is not None and not item.chunk.is_last:
            item.chunk = item.chunk.next()
        else:
            item.chunk = None
            item.ahead += len(row.tokens)
            if row.samples:
                item.due += row.samples
                if self._limits.overlaps:
                    item.feed = Feed(step=self._steps, row=index)
        item.waits = not self._limits.overlaps or item.is_ending

    def _parked(self) -> tuple[str, ...]:
        """Requests whose chunk has not passed all layers when the step has been done that is issued now."""
        return tuple(item.id for item in self._running.values() if item.chunk is not None)

    def _settle(self, item: LiveRequest, row: Row, outcome: RowResult, events: list[Event], *, is_part: bool) -> None:
        """Commit what a row computed, append what it drew, and see whether that ends the request."""
        if outcome.fault is not None:
            events.append(self._finish(item, "error", outcome.fault.message))
            return
        if not outcome.scores and len(outcome.tokens) != row.samples:
            message = f"the executor drew {len(outcome.tokens)} tokens where {row.samples} were due"
            events.append(self._finish(item, "error", message))
            return
        if is_part:
            return
        item.ahead -= len(row.tokens)
        item.due -= row.samples
        item.computed = row.start + len(row.tokens)
        self._kv.commit(item.id, item.computed)
        if outcome.scores:
            item.scores += outcome.scores
            if item.computed == len(item.tokens) or not item.token_classes:
                scores = tuple(item.scores[item.virtual * item.token_classes :])
                events.append(self._finish(item, "stop", scores=scores))
            return
        if outcome.given:
            first = max(row.start, item.virtual) + 1 - item.virtual
            events.append(
                TokensEvent(request=item.id, tokens=(), logprobs=(), prompt_start=first, prompt_logprobs=outcome.given)
            )
        if not outcome.tokens:
            return
        item.tokens.extend(outcome.tokens)
        self._queue.charge(item.tenant, output_tokens=len(outcome.tokens), logprobs=len(outcome.logprobs))
        events.append(TokensEvent(request=item.id, tokens=outcome.tokens, logprobs=outcome.logprobs))
        if outcome.tokens[-1] in item.request.stop_token_ids:
            events.append(self._finish(item, "stop"))
        elif len(item.tokens) >= item.limit_tokens:
            events.append(self._finish(item, "length"))

    def _lose_worker(self, flight: _InFlight, fault: Fault) -> tuple[Event, ...]:
        """All KV is gone. Who runs is computed again; who was in the lost step too often ends with an error.

        Only rows of the lost step count as tries, so that a request which kills workers takes few others with it.
        """
        self._kv.forget()
        self._residents.forget()
        self.sessions.end(self._kv.groups)
        for other in self._in_flight.values():
            other.is_void = True
        events: list[Event] = []
        for item in flight.items:
            if item.state == "ended":
                continue
            item.losses += 1
            if item.losses >= self._worker_tries:
                events.append(self._finish(item, "error", fault.message))
        for item in tuple(self._running.values()):
            if item.step is None:
                self._return(item)
            else:
                item.waits = True  # a later step has a row of it, which goes on from what is gone
        return tuple(events)

    def _finish(
        self, item: LiveRequest, reason: FinishReason, message: str = "", *, scores: tuple[float, ...] = ()
    ) -> EndEvent:
        """End a request. Under a step in flight its pages stay its own: that step may still write to them."""
        was = item.state
        item.state = "ended"
        item.pauses = bool(item.request.session) and reason in ("stop", "length")
        if was == "waiting":
            self._queue.leave(item)
            del self._live[item.id]
        else:
            del self._running[item.id]
            if item.step is None:
                self._forget(item)
        return _end(item.id, reason, message, cached_tokens=item.cached or 0, scores=scores)

    def _forget(self, item: LiveRequest) -> None:
        if item.pauses:
            self.sessions.pause(item.request, self._kv.pause(item.id), self._now_s)
        else:
            self._kv.release(item.id)
        self._residents.release(item.request.chain)
        del self._live[item.id]


def _worker_fault(step: Step, result: StepResult) -> Fault | None:
    """Return the fault that spoils everything, if there is one. Results of another shape count as one."""
    if result.step != step.id or len(result.rows) != len(step.rows):
        return Fault(scope="worker", message="the executor answered another step than it was given")
    faults = (outcome.fault for outcome in result.rows if outcome.fault is not None)
    return next((fault for fault in faults if fault.scope == "worker"), None)


def _end(
    request: str, reason: FinishReason, message: str = "", *, cached_tokens: int = 0, scores: tuple[float, ...] = ()
) -> EndEvent:
    return EndEvent(request=request, reason=reason, message=message, cached_tokens=cached_tokens, scores=scores)
