"""A pipeline on a virtual clock: steps one behind the other in its stages, hidden states on the links between them.

In and out as `instance.py`. The runtime's scheduler issues a step whenever the first stage is free and fewer steps are
under way than there are stages; who is in one of them is passed over. A step has no more rows than its part of all
requests, so that no stage stands idle while there are enough. Steps are not folded. Invariant: no stage and no link has
two steps at once, and they pass each in the order in which they were issued; one stage is a plain cell.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field, replace

from blockc.cost import TICKS_PER_S, ticks
from blockc.simulate.counted import CountedKv
from blockc.simulate.folding import FoldingScheduler
from blockc.simulate.instance import Instance, Left, Served
from blockc.simulate.step_price import step_price
from blockc_runtime.kv.index import KvIndex
from blockc_runtime.limits import EngineLimits
from blockc_runtime.request import Request
from blockc_runtime.step import Step


class PipelineScheduler(FoldingScheduler):
    """With another bound on the rows of each step: requests are divided among as many steps as can be under way."""

    def __init__(self, limits: EngineLimits, kv: KvIndex, *, stages: int, max_waiting: int) -> None:
        super().__init__(limits, kv, max_waiting=max_waiting)
        self._stages = stages
        self._most_rows = limits.max_rows
        self._by_rows: dict[int, EngineLimits] = {}

    def schedule(self, now_s: float) -> Step | None:
        """As its base class, with fewer rows at most."""
        rows = min(self._most_rows, max(1, -(-(self.running + self.waiting) // self._stages)))
        if rows not in self._by_rows:
            self._by_rows[rows] = replace(self._limits, max_rows=rows)
        self._limits = self._by_rows[rows]
        return super().schedule(now_s)


@dataclass(frozen=True, slots=True)
class _Passing:
    """A step under way: when it was issued, when its last stage will be done, and what stages take on average."""

    step: Step
    start: int
    end: int
    busy: int
    tokens: int


@dataclass(slots=True)
class PipelinedInstance(Instance):
    """``now``: the next moment at which a step may be issued, or one ends."""

    sent_bytes: int = 0
    _passing: deque[_Passing] = field(default_factory=deque)
    _door: deque[Request] = field(default_factory=deque)  # those that came while a step was under way
    _free: list[int] = field(default_factory=list)  # when each stage, and each link, will be
    _link_free: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """A new scheduler over empty pages; all stages are idle."""
        limits = replace(self.fleet.limits, prefill_parts=1, overlaps=False)
        self._kv = CountedKv(limits) if self.counts else KvIndex(limits)
        self._scheduler = PipelineScheduler(limits, self._kv, stages=len(self.fleet.stages), max_waiting=1 << 62)
        self._free = [0] * len(self.fleet.stages)
        self._link_free = [0] * len(self.fleet.hops)

    def admit(self, request: Request, *, number: int, at: int, left: Left | None = None) -> list[Served]:
        """Take a request in; it is looked at when the next step may be issued."""
        if not self._live:
            self.now = max(self.now, at)
        elif len(self._passing) < len(self._free):
            self.now = min(self.now, max(at, self._free[0]))
        self._note(request, number, left)
        self._door.append(request)
        return self._taken()

    def leave(self, name: str) -> Left:
        """As of a plain cell; who is still at the door has begun nothing."""
        for request in self._door:
            if request.id == name:
                self._door.remove(request)
                return self._left(name, request, computed=0, cached_tokens=0)
        return Instance.leave(self, name)  # dataclasses with slots have no `super()`

    def tokens_of_live(self) -> list[tuple[int, int]]:
        """As of a plain cell, where a step that has begun counts as done."""
        drawn = Counter(row.request for flight in self._passing for row in flight.step.rows if row.samples)
        return [(item.number, item.tokens + drawn[name]) for name, item in self._live.items()]

    def advance(self, until: int | None, *, stops_at_end: bool = False) -> list[Served]:
        """Whatever happens before ``until``: steps that are issued, and such that end."""
        while self._live and (until is None or self.now < until) and not (stops_at_end and self._ended):
            self._deliver()
            self._complete()
            if stops_at_end and self._ended:
                break
            while self._door:
                self._take(self._scheduler.admit(self._door.popleft(), self.now / TICKS_PER_S))
            if self._live:
                self._go_on()
        return self._taken()

    def _complete(self) -> None:
        """Take in the results of what has passed the last stage by now."""
        while self._passing and self._passing[0].end <= self.now:
            flight = self._passing.popleft()
            self._finish(flight.step, flight.start, tokens=flight.tokens, spent=flight.busy)

    def _go_on(self) -> None:
        """Issue a step if there is room for one, and see when something happens next."""
        scheduler, has_room = self._scheduler, len(self._passing) < len(self._free)
        step = None
        if has_room and self._free[0] <= self.now:
            step = scheduler.schedule(self.now / TICKS_PER_S)
            for chain in scheduler.take_wanted():
                self._read(self.now, self.fleet.pricer.read(chain), is_segment=False, number=chain)
            if step is not None:
                self._passing.append(self._pass(step))
        coming = [self._passing[0].end] if self._passing else []
        if step is not None and len(self._passing) < len(self._free):
            coming.append(self._free[0])
        if step is None:
            coming += [self._reading[0][0]] if self._reading else []
            if has_room and self._free[0] > self.now:
                coming.append(self._free[0])
        assert coming, "requests are here, none runs, and nothing is awaited"
        self.now = min(coming)

    def _pass(self, step: Step) -> _Passing:
        """Through all stages: each begins when the step is there and the one before has left it."""
        at, busy, count = self.now, 0, 0
        for stage, pricer in enumerate(self.fleet.stages):
            price, count = step_price(step, pricer, self.fleet.limits)
            busy += price
            at = self._free[stage] = max(at, self._free[stage]) + price
            if stage < len(self.fleet.hops):
                hop = self.fleet.hops[stage]
                self.sent_bytes += count * hop.token_bytes
                gone = max(at, self._link_free[stage]) + ticks(count * hop.token_bytes / hop.link.bytes_per_s)
                self._link_free[stage] = gone
                at = gone + ticks(hop.link.latency_s)
        return _Passing(step=step, start=self.now, end=at, busy=busy // len(self._free), tokens=count)
