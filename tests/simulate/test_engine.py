"""The engine itself on a virtual clock: its loop, its scheduler, its KV index. The simulator says what it does."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc.cost import TICKS_PER_S, ticks
from blockc.simulate.fleet import Fleet
from blockc.simulate.instance import answer_token
from blockc.simulate.prompts import Prompts
from blockc.simulate.simulate import simulate
from blockc.simulate.step_price import step_price
from blockc.simulate.workload import Arrival, Workload
from blockc_runtime.engine import Engine
from blockc_runtime.epoch import Epoch
from blockc_runtime.kv.index import KvIndex
from blockc_runtime.request import Request, Sampling
from blockc_runtime.scheduler import Scheduler
from blockc_runtime.step import RowResult, SegmentTurn, Step, StepResult
from blockc_runtime.wire.messages import Drain, End, Message, Submit, Tokens
from tests.runtime.scheduler.harness import limits
from tests.simulate.fleets import fleet, in_a_room, taking_turns


@dataclass
class Clock:
    ticks: int = 0

    def __call__(self) -> float:
        return self.ticks / TICKS_PER_S


@dataclass
class VirtualChannel:
    """Hands requests out when their time has come, then asks for the end; notes when tokens and ends come back."""

    clock: Clock
    waiting: list[tuple[int, Request]]
    reads: deque[tuple[int, bool, int]]
    first: dict[str, int] = field(default_factory=dict)
    end: dict[str, int] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)

    def receive(self, wait_s: float | None) -> list[Message]:
        if wait_s is None and self.waiting:
            self.clock.ticks = max(self.clock.ticks, self.waiting[0][0])
        elif wait_s:
            assert self.reads, "requests are here, none runs, and nothing is read"
            self.clock.ticks = min(entry[0] for entry in (self.reads[0], *self.waiting[:1]))
        found: list[Message] = []
        while self.waiting and self.waiting[0][0] <= self.clock.ticks:
            found.append(Submit(request=self.waiting.pop(0)[1]))
        return found if self.waiting else [*found, Drain()]

    def send(self, *messages: Message) -> None:
        for message in messages:
            if isinstance(message, Tokens):
                for event in message.events:
                    self.first.setdefault(event.request, self.clock.ticks)
            elif isinstance(message, End):
                self.end |= {event.request: self.clock.ticks for event in message.events}
                self.refused |= {event.request for event in message.events if event.reason == "error"}


@dataclass
class PricedExecutor:
    """A step runs when those before it are done, and takes what it costs; time passes until that is over.

    Reads end beside that, one after the other.
    """

    fleet: Fleet
    clock: Clock
    reads: deque[tuple[int, bool, int]] = field(default_factory=deque)  # when, whether a segment, which
    queue: list[tuple[Step, int]] = field(default_factory=list)
    brings: int = 0

    def prefetch(self, chain: int) -> None:
        self._read(self.fleet.instances[0].pricer.read(chain), False, chain)

    def index(self, chain: int) -> bool:
        return True

    def prefetched(self) -> list[tuple[int, None]]:
        return self._done(False)

    def bring(self, turn: SegmentTurn) -> None:
        (own,) = self.fleet.instances
        entry = own.limits.turns[turn.segment]
        rates = own.rates
        seconds = entry.nbytes / rates.fill_bytes_per_s
        price = ticks(seconds) + (0 if entry.from_host else ticks(entry.nbytes / rates.read_bytes_per_s))
        self.brings += 1
        self._read(price, True, turn.segment)

    def brought(self) -> list[tuple[int, None]]:
        return self._done(True)

    def _read(self, price: int, is_segment: bool, number: int) -> None:
        begun = max(self.clock.ticks, self.reads[-1][0]) if self.reads else self.clock.ticks
        self.reads.append((begun + price, is_segment, number))

    def _done(self, is_segment: bool) -> list[tuple[int, None]]:
        done = [entry for entry in self.reads if entry[0] <= self.clock.ticks and entry[1] == is_segment]
        for entry in done:
            self.reads.remove(entry)
        return [(number, None) for _, _, number in done]

    def submit(self, step: Step) -> None:
        (own,) = self.fleet.instances
        starts = self.queue[-1][1] if self.queue else self.clock.ticks
        price, _ = step_price(step, own.pricer, own.limits, is_behind=bool(self.queue))
        self.queue.append((step, starts + price))

    def collect(self) -> StepResult:
        step, self.clock.ticks = self.queue.pop(0)
        rows = (RowResult(tokens=(answer_token(int(row.request)),) * row.samples, logprobs=()) for row in step.rows)
        return StepResult(step=step.id, rows=tuple(rows))

    def close(self) -> None:
        """Nothing is held."""


def served_by_the_engine(own: Fleet, workload: Workload) -> VirtualChannel:
    prompts = Prompts(workload.arrivals)
    requests = [
        (
            ticks(item.at_s),
            Request(
                id=str(number),
                app=item.app,
                chain=own.apps[item.app].chain,
                isolation_group=own.apps[item.app].isolation_group,
                prompt=prompts.make(number),
                emitted=0,
                max_tokens=item.output_tokens,
                stop_token_ids=(),
                sampling=Sampling(),
            ),
        )
        for number, item in enumerate(workload.arrivals)
    ]
    clock = Clock()
    executor = PricedExecutor(own, clock)
    waiting = sorted(requests, key=lambda entry: entry[0])
    channel = VirtualChannel(clock=clock, waiting=waiting, reads=executor.reads)
    kv = KvIndex(own.instances[0].limits)
    scheduler = Scheduler(own.instances[0].limits, kv)
    first = Epoch(number=0, scheduler=scheduler, executor=executor, overlaps=own.instances[0].limits.overlaps)
    Engine(channel=channel, first=first, clock=clock).run()
    assert not scheduler.has_work
    assert executor.brings == scheduler.gauges().counts.block_loads
    return channel


arrivals = st.builds(
    Arrival,
    at_s=st.floats(0, 0.05, allow_subnormal=False),
    app=st.integers(0, 4),
    prompt_tokens=st.integers(1, 70),
    output_tokens=st.integers(1, 30),
)


@settings(max_examples=80, deadline=None)
@given(
    items=st.lists(arrivals, min_size=1, max_size=16),
    pages=st.sampled_from([(40, 40), (18, 20)]),
    rows=st.sampled_from([3, 8]),
    windows=st.sampled_from([(None, None), (None, 8)]),
    targets=st.sampled_from([(), (0.02, 0.03, None, 0.01, 0.02, None)]),
    parts=st.sampled_from([1, 1, 4]),
    slots=st.sampled_from([None, 1, 2]),
    room=st.sampled_from([None, "tight", "wide"]),
    overlaps=st.booleans(),
)
def test_the_engine_serves_when_the_simulator_says(
    items, pages, rows, windows, targets, parts, slots, room, overlaps
) -> None:
    plain = limits(pages=pages, max_rows=rows, windows=windows, parts=parts, max_batched_tokens=32, overlaps=overlaps)
    plain = plain if slots is None else taking_turns(plain, slots)
    plain = plain if room is None else in_a_room(plain, room)
    own = fleet(replace(plain, ttft_targets_s=targets))
    workload = Workload(arrivals=tuple(items), source="drawn")
    engine = served_by_the_engine(own, workload)
    run = simulate(own, workload)
    assert {str(item.number): item.end for item in run.served if item.refusal is None} == {
        request: end for request, end in engine.end.items() if request not in engine.refused
    }
    assert {str(item.number): item.first for item in run.served if item.first is not None} == engine.first
    assert {str(item.number) for item in run.served if item.refusal is not None} == engine.refused


@pytest.mark.parametrize(("room", "loads"), [("tight", 6), ("wide", 2)])
def test_waiting_for_weights_takes_its_time(room: str, loads: int) -> None:
    """Chains 0 and 3 are asked for by turns: with room for one of them each request waits for its weights."""
    own = fleet(in_a_room(limits(pages=(200, 200)), room))
    arrivals = tuple(Arrival(at_s=0.1 * n, app=n % 2 * 3, prompt_tokens=4, output_tokens=2) for n in range(6))
    workload = Workload(arrivals=arrivals, source="turns")
    run, engine = simulate(own, workload), served_by_the_engine(own, workload)
    assert [item.end for item in run.served] == [engine.end[str(number)] for number in range(6)]
    (instance,) = run.instances
    assert instance.block_loads == loads
    always = simulate(fleet(limits(pages=(200, 200))), workload)
    waits = [late.end - soon.end for late, soon in zip(run.served, always.served, strict=True)]
    reads = [nbytes / 1e6 * 1e15 + nbytes / 1e7 * 1e15 for nbytes in (4000, 9000)]
    assert waits == [reads[n % 2] if n < loads else 0 for n in range(6)]


def test_turns_go_by_when_first_tokens_are_due() -> None:
    """Of one tenant's apps the one with the nearer target goes first, unless it came so much later."""
    own = fleet(replace(limits(pages=(200, 200), max_rows=1), ttft_targets_s=(0.05, None, None, 0.01, None, None)))
    first = [Arrival(at_s=0.0, app=0, prompt_tokens=4, output_tokens=60)]
    for late_s, wins in ((0.001, 2), (0.045, 1)):
        pair = [
            Arrival(at_s=at_s, app=app, prompt_tokens=4, output_tokens=3) for at_s, app in ((0.0005, 0), (late_s, 3))
        ]
        workload = Workload(arrivals=(*first, *pair), source="due")
        run, engine = simulate(own, workload), served_by_the_engine(own, workload)
        ends = [item.end for item in run.served]
        assert max(item.at_s for item in pair) < ends[0] / TICKS_PER_S  # both wait when the first one ends
        assert ends[wins] == min(ends[1:])
        assert ends == [engine.end[str(number)] for number in range(3)]
