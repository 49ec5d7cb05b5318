"""One instance on a virtual clock: the runtime's scheduler, its KV index, and a price in place of an executor.

In: requests, and the time until which to run. Out: when each got its first token and its last. Times are in ticks
(`blockc.cost`). The loop is the engine's (`blockc_runtime.engine`): what arrived is admitted between two steps, and one
step is in flight at a time, or, where steps overlap, one more, which runs next. Invariant: the same requests give the
same times, whether alike steps are folded or not.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from blockc.cost import TICKS_PER_S
from blockc.simulate.counted import CountedKv
from blockc.simulate.fleet import FleetInstance
from blockc.simulate.folding import DecodeRun, FoldingScheduler
from blockc.simulate.step_price import behind, step_price
from blockc_runtime.kv.index import KvIndex
from blockc_runtime.kv.prefix import Prefix
from blockc_runtime.request import EndEvent, Event, Request, TokensEvent
from blockc_runtime.router import PREFIX_TOKENS
from blockc_runtime.step import RowResult, Step, StepResult

NOTHING = RowResult(tokens=(), logprobs=())


@dataclass(frozen=True, slots=True)
class Moment:
    """One event of an instance: a step, or ``steps`` of them that were alike."""

    start: int
    end: int
    steps: int
    rows: int
    tokens: int  # of one of the steps
    running: int
    waiting: int


@dataclass(slots=True)
class Served:
    """What became of one request, by its number. ``first`` None: it never got a token. ``refusal``: why it got none."""

    number: int
    end: int
    first: int | None
    tokens: int
    cached_tokens: int
    refusal: str | None


@dataclass(slots=True)
class Totals:
    """What an instance did. ``sampled_tokens``: those drawn. ``row_time``: rows of each step times its length."""

    busy: int = 0
    steps: int = 0
    tokens: int = 0
    sampled_tokens: int = 0
    row_time: int = 0
    events: int = 0


@dataclass(slots=True)
class _Live:
    """A request that has not ended: its answer's token, when it got its first, how many it has.

    ``has_started``: it has got one here. ``cached_tokens``: of its prompt, found where it was before.
    """

    number: int
    token: RowResult
    first: int | None = None
    tokens: int = 0
    has_started: bool = False
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A request that goes elsewhere, at ``at``. ``computed``: how many of its tokens have KV, virtual ones included.

    ``cached_tokens`` None: it has not begun.
    """

    number: int
    at: int
    request: Request
    computed: int
    first: int | None
    tokens: int
    cached_tokens: int | None


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that was issued, and when it runs."""

    step: Step
    start: int
    end: int
    tokens: int


@dataclass(slots=True)
class Instance:
    """``now`` is the end of its last step that is done, or when it was last given something to do.

    ``keeps_moments``: events are kept for a trace. ``counts``: no prompt begins as another, so pages are
    counted and not named. ``reads``: for others, to which requests go when they have their first token.
    """

    fleet: FleetInstance
    folds: bool = True
    keeps_moments: bool = False
    counts: bool = False
    reads: bool = False
    now: int = 0
    totals: Totals = field(default_factory=Totals)
    moments: list[Moment] = field(default_factory=list)
    _kv: KvIndex = field(init=False)
    _scheduler: FoldingScheduler = field(init=False)
    _live: dict[str, _Live] = field(default_factory=dict)
    _answers: dict[str, int] = field(default_factory=dict)
    _ended: list[Served] = field(default_factory=list)
    _started: list[int] = field(default_factory=list)
    _flights: deque[_Flight] = field(default_factory=deque)
    # When a chain's sides will be there, or the weights of a segment (True).
    _reading: deque[tuple[int, bool, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        """A new scheduler over empty pages."""
        limits = self.fleet.limits
        self._kv = CountedKv(limits) if self.counts else KvIndex(limits)
        # A queue without an end: who came too late is to wait, not to vanish from the figures.
        self._scheduler = FoldingScheduler(limits, self._kv, max_waiting=1 << 62)

    @property
    def live(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    def here(self) -> list[tuple[str, int, int]]:
        """Of the requests that have not ended: what they are called here, their numbers, how many tokens each has."""
        return [(name, item.number, item.tokens) for name, item in self._live.items()]

    def tokens_of_live(self) -> list[tuple[int, int]]:
        """Numbers of the requests that have not ended, and how many tokens each has been given."""
        return [(item.number, item.tokens) for item in self._live.values()]

    @property
    def side_loads(self) -> int:
        """Fine-tunes that were put in a slot."""
        return self._scheduler.gauges().counts.side_loads

    @property
    def block_loads(self) -> int:
        """Segments whose weights were read, where they take turns."""
        return self._scheduler.gauges().counts.block_loads

    @property
    def preemptions(self) -> int:
        """Requests that had to give pages or places back."""
        return self._scheduler.gauges().counts.preemptions

    def take_started(self) -> list[int]:
        """Numbers of the requests that have got their first token since the last call, in order."""
        started, self._started = self._started, []
        return started

    def findable(self, chain: int, prefix: Prefix) -> int:
        """How many tokens of a prefix are in the cache."""
        return self._kv.findable(chain, prefix)

    def adopt(self, name: str, chain: int, prefix: Prefix) -> None:
        """KV of a prefix comes from another instance: it is found here from now on, as far as there is room for it."""
        done = self._kv.acquire(name, chain=chain, prefix=prefix)
        if done is None:
            return
        while done < len(prefix.tokens):  # bit by bit, as a prompt is computed, so that windows are passed
            done = min(done + PREFIX_TOKENS, len(prefix.tokens))
            if not self._kv.reserve(name, done):
                break
            self._kv.commit(name, done)
        self._kv.release(name)

    def admit(self, request: Request, *, number: int, at: int, left: Left | None = None) -> list[Served]:
        """Take a request in, which arrived at ``at``: no later than any step that starts from here on.

        ``left``: what became of it elsewhere. Returned is its end, if it can never run.
        """
        if not self._live:
            self.now = max(self.now, at)
        self._note(request, number, left)
        self._take(self._scheduler.admit(request, self.now / TICKS_PER_S))
        return self._taken()

    def leave(self, name: str) -> Left:
        """A request goes elsewhere, after the step that runs now. Steps that are issued already run without it."""
        own = self._scheduler.withdraw(name)
        left = self._left(name, own.request, computed=own.computed, cached_tokens=own.cached_tokens)
        while self._flights and not self._live:  # nobody else waits for what they do
            self._land(self._flights.popleft())
        return left

    def _note(self, request: Request, number: int, left: Left | None) -> None:
        token = answer_token(number)
        live = self._live[request.id] = _Live(number=number, token=RowResult(tokens=(token,), logprobs=()))
        self._answers[request.id] = token
        if left is not None:
            live.first, live.tokens, live.cached_tokens = left.first, left.tokens, left.cached_tokens

    def _left(self, name: str, request: Request, *, computed: int, cached_tokens: int) -> Left:
        live = self._live.pop(name)
        del self._answers[name]
        if live.cached_tokens is not None:
            cached: int | None = live.cached_tokens
        else:
            cached = cached_tokens if computed or live.has_started else None
        return Left(
            number=live.number, at=self.now, request=request, computed=computed, first=live.first,
            tokens=live.tokens, cached_tokens=cached,
        )  # fmt: skip

    def _results(self, step: Step) -> tuple[RowResult, ...]:
        """Of each row its request's token, if it draws one and the request is still here."""
        live = self._live
        return tuple([
            live[row.request].token if row.samples and row.request in live else NOTHING for row in step.rows
        ])  # fmt: skip

    def _begin(self, live: _Live, at: int) -> None:
        """A request has got its first token here."""
        live.has_started = True
        self._started.append(live.number)
        if live.first is None:
            live.first = at

    def advance(self, until: int | None, *, stops_at_end: bool = False) -> list[Served]:
        """Run the steps that start before ``until`` (None: all); what ended meanwhile, in order.

        ``stops_at_end``: only as far as to the end of a step in which a request ends; and who reads for others, to the
        end of one in which a request gets its first token.
        """
        folds = self.folds and not self.reads
        while self._live and (until is None or self.now < until):
            if (stops_at_end and self._ended) or (self.reads and self._started):
                break
            self._deliver()
            run = self._scheduler.decode_run(at_most=1 << 30) if folds else None
            if (run is None or not self._fold(run, until)) and not self._step():
                self._wait(until)
        return self._taken()

    def _taken(self) -> list[Served]:
        ended, self._ended = self._ended, []
        return ended

    def _deliver(self) -> None:
        """Fine-tunes that have been read meanwhile may be used from here on."""
        while self._reading and self._reading[0][0] <= self.now:
            _, is_segment, number = self._reading.popleft()
            self._take(self._scheduler.brought(number) if is_segment else self._scheduler.arrived(number))

    def _wait(self, until: int | None) -> None:
        """Nothing can run before the next fine-tune has been read."""
        assert self._reading, "requests are here, none runs, and nothing is awaited"
        ready = self._reading[0][0]
        self.now = ready if until is None else min(ready, until)

    def _step(self) -> bool:
        """Issue a step, if one can run, and take in what is due; False if there is neither."""
        scheduler, start = self._scheduler, self.now
        step = scheduler.schedule(start / TICKS_PER_S)
        pricer, turns = self.fleet.pricer, self.fleet.limits.turns
        for turn in scheduler.take_turns():
            own = turns[turn.segment]
            self._read(start, pricer.bring(own.nbytes, from_host=own.from_host), is_segment=True, number=turn.segment)
        for chain in scheduler.take_wanted():
            self._read(start, pricer.read(chain), is_segment=False, number=chain)
        flights = self._flights
        if step is not None:
            flights.append(self._flight(step))
        if not flights:
            return False
        while len(flights) > (step is not None and self.fleet.limits.overlaps):
            self._land(flights.popleft())
        return True

    def _read(self, start: int, price: int, *, is_segment: bool, number: int) -> None:
        """One after the other: they share a drive."""
        begun = max(start, self._reading[-1][0]) if self._reading else start
        self._reading.append((begun + price, is_segment, number))

    def _flight(self, step: Step) -> _Flight:
        before = self._flights[-1] if self._flights else None
        price, tokens = step_price(step, self.fleet.pricer, self.fleet.limits, is_behind=before is not None)
        start = self.now if before is None else before.end
        return _Flight(step=step, start=start, end=start + price, tokens=tokens)

    def _land(self, flight: _Flight) -> None:
        """A step is done."""
        self.now = flight.end
        self._finish(flight.step, flight.start, tokens=flight.tokens)

    def _finish(self, step: Step, start: int, *, tokens: int, spent: int | None = None) -> None:
        """Take in what a step has drawn. ``spent``: see `_count`."""
        results = self._results(step)
        sampled = sum([row.samples for row in step.rows])
        self._count(start, steps=1, rows=len(step.rows), tokens=tokens, sampled=sampled, spent=spent)
        self._take(self._scheduler.complete(step, StepResult(step=step.id, rows=results), self.now / TICKS_PER_S))

    def _alike(self, run: DecodeRun) -> tuple[int, int, int]:
        """The first step's price, by how much they grow, and how many of the run's steps do."""
        pricer = self.fleet.pricer
        tokens: dict[int, int] = {}
        growth = 0
        price = pricer.constant(len(run.items))
        steps = run.steps
        for item in run.items:
            chain = item.request.chain
            tokens[chain] = tokens.get(chain, 0) + 1
            now, own_growth, alike = pricer.decode(chain, item.reached)
            price += now
            growth += own_growth
            if alike is not None and alike < steps:
                steps = alike
        price += pricer.launches(tokens, tokens)
        return price, growth, steps

    def _fold_behind(self, run: DecodeRun, until: int | None) -> bool:
        """Issue the steps of a run before ``until``, and take in all but the last; False if one by one is no more."""
        (flight,) = self._flights
        rows = len(run.items)
        constant = self.fleet.pricer.constant(rows)
        price, growth, steps = self._alike(run)
        if (rest := price - constant) < constant and growth:
            steps, growth = min(steps, (constant - rest) // growth + 1), 0
        price = behind(price, constant)
        if until is not None:  # one is issued now, the next when the one in flight is done, and so on
            steps = min(steps, 1 + (steps_before(until - flight.end, price, growth) if until > flight.end else 0))
        if steps < 2 or not all(self._live[item.id].has_started for item in run.items):
            return False
        starts = [flight.end + _start_of(step, price, growth) for step in (0, steps - 1, steps)]
        self.now = flight.end
        self._count(flight.start, steps=1, rows=rows, tokens=rows, sampled=rows)
        self.now = starts[1]
        self._count(starts[0], steps=steps - 1, rows=rows, tokens=rows, sampled=rows)
        for item in run.items:
            self._live[item.id].tokens += steps
        step = self._scheduler.fold_behind(run, steps, self._answers)
        self._flights[0] = _Flight(step=step, start=starts[1], end=starts[2], tokens=rows)
        return True

    def _fold(self, run: DecodeRun, until: int | None) -> bool:
        """The steps of a run that start before ``until``, each priced as it would be alone."""
        if self._flights:
            return self._fold_behind(run, until)
        start = self.now
        price, growth, steps = self._alike(run)
        taken = steps if until is None else min(steps, steps_before(until - start, price, growth))
        self.now = start + price * taken + growth * (taken * (taken - 1) // 2)
        rows = len(run.items)
        self._count(start, steps=taken, rows=rows, tokens=rows, sampled=rows)
        for item in run.items:
            live = self._live[item.id]
            live.tokens += taken
            if not live.has_started:
                self._begin(live, start + price)
        self._take(self._scheduler.fold(run, taken, self._answers))
        return True

    def _count(self, start: int, *, steps: int, rows: int, tokens: int, sampled: int, spent: int | None = None) -> None:
        """``spent``: of the time since then, where something else was under way meanwhile."""
        totals = self.totals
        spent = self.now - start if spent is None else spent
        totals.busy += spent
        totals.steps += steps
        totals.events += 1
        totals.sampled_tokens += steps * sampled
        totals.tokens += steps * tokens
        totals.row_time += rows * spent
        if self.keeps_moments:
            self.moments.append(
                Moment(start, self.now, steps, rows, tokens, self._scheduler.running, self._scheduler.waiting)
            )

    def _take(self, events: tuple[Event, ...] | tuple[EndEvent, ...]) -> None:
        for event in events:
            if isinstance(event, TokensEvent):
                live = self._live[event.request]
                live.tokens += len(event.tokens)
                if not live.has_started:
                    self._begin(live, self.now)
                continue
            live = self._live.pop(event.request)
            del self._answers[event.request]
            self._ended.append(
                Served(
                    number=live.number,
                    end=self.now,
                    first=live.first,
                    tokens=live.tokens,
                    cached_tokens=event.cached_tokens if live.cached_tokens is None else live.cached_tokens,
                    refusal=event.message if event.reason == "error" else None,
                )
            )


def steps_before(span: int, price: int, growth: int) -> int:
    """How many steps start within ``span`` from the first one's start, if each takes ``growth`` longer than the last.

    The first starts at 0; the next at ``price``, then ``2 price + growth``, and so on.
    """
    low, high = 0, 1
    while _start_of(high, price, growth) < span:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if _start_of(middle, price, growth) < span:
            low = middle
        else:
            high = middle
    return high


def _start_of(step: int, price: int, growth: int) -> int:
    return step * price + growth * (step * (step - 1) // 2)


def answer_token(number: int) -> int:
    """The token of which a request's whole answer consists: no other request has it, and no prompt."""
    return -1 - number
