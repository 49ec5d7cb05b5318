"""A workload on a fleet: every request from its arrival to its last token.

In: a fleet and a workload. Out: what became of each request, and what each instance did. Instances that serve no app
together know nothing of each other, and run one after the other. Where an app has several, the runtime's own router
chooses (`blockc_runtime.router`); KV that it has sent from one to another is found there when it has arrived, and the
request waits for that. Invariant: the same fleet and workload give the same run.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from blockc.cost import TICKS_PER_S, ticks
from blockc.simulate.counted import is_countable
from blockc.simulate.fleet import Fleet
from blockc.simulate.instance import Instance, Left, Moment, Served, Totals
from blockc.simulate.moves import HandOver, Outage, first_of
from blockc.simulate.pipeline import PipelinedInstance
from blockc.simulate.prompts import Prompts
from blockc.simulate.routing import Dispatch
from blockc.simulate.workload import Arrival, Workload
from blockc_runtime.request import Request, Sampling

_GREEDY = Sampling()
# In place of an arrival's number: the moment at which the last one comes. It stands after those of the same time.
_HORIZON = 1 << 62
# The moment at which the router looks for moves that pay; and outages, by their index from there on.
_REVIEW = _HORIZON + 1
_OUTAGE = _HORIZON + 2
_REVIEW_TICKS = TICKS_PER_S // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRun:
    """What one instance did. ``moments`` only if they were asked for; ``hop_bytes`` went from stage to stage."""

    name: str
    width: int
    totals: Totals
    preemptions: int
    side_loads: int
    block_loads: int
    moments: tuple[Moment, ...]
    stages: int = 0
    hop_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """``arrived`` and ``served``: by number of the arrival. ``horizon``: when the last request of the trace arrived.

    ``by_horizon``: tokens that each app had been given by then. Times in ticks. ``routed``: requests by what the router
    said of their KV, in words of its own; empty where there was nothing to choose. ``sent_bytes``: KV that travelled,
    by app, that of ``hand_overs`` included.
    """

    fleet: Fleet
    workload: Workload
    arrived: tuple[int, ...]
    served: tuple[Served, ...]
    placed: tuple[int, ...]
    instances: tuple[InstanceRun, ...]
    horizon: int
    by_horizon: tuple[int, ...]
    routed: Mapping[str, int]
    sent_bytes: tuple[int, ...]
    hand_overs: tuple[HandOver, ...]


def simulate(
    fleet: Fleet,
    workload: Workload,
    *,
    folds: bool = True,
    counts: bool = True,
    keeps_moments: bool = False,
) -> Run:
    """Run all of it.

    ``folds`` False takes every step by itself, ``counts`` False names every page: both for comparison, they change
    nothing. ``keeps_moments``: every event is in the result.
    """
    counts = (
        counts
        and not (fleet.caches and workload.may_reuse)
        and all(is_countable(item.limits) for item in fleet.instances)
    )
    readers = {index for app in fleet.apps for index in app.readers}
    instances = [
        (PipelinedInstance if item.stages else Instance)(
            fleet=item, folds=folds, counts=counts, keeps_moments=keeps_moments, reads=index in readers
        )
        for index, item in enumerate(fleet.instances)
    ]
    driver = _Driver(fleet, workload, instances, first_of(fleet.outages), counts=counts)
    for members in _components(fleet):
        driver.run(members)
    return Run(
        fleet=fleet,
        workload=workload,
        arrived=tuple(driver.arrived),
        served=tuple(item for item in driver.served if item is not None),
        placed=tuple(driver.placed),
        instances=tuple(
            InstanceRun(
                name=item.fleet.name,
                width=item.fleet.width,
                totals=item.totals,
                preemptions=item.preemptions,
                side_loads=item.side_loads,
                block_loads=item.block_loads,
                moments=tuple(item.moments),
                stages=len(item.fleet.stages),
                hop_bytes=item.sent_bytes if isinstance(item, PipelinedInstance) else 0,
            )
            for item in instances
        ),
        horizon=driver.horizon,
        by_horizon=tuple(driver.by_horizon),
        routed=dict(sorted(driver.dispatch.routed.items())),
        sent_bytes=tuple(driver.dispatch.sent_bytes[app] for app in range(len(fleet.apps))),
        hand_overs=tuple(sorted(driver.dispatch.hand_overs, key=lambda item: (item.left, item.number))),
    )


class _Driver:
    """Hands arrivals to instances in the order of time."""

    def __init__(
        self,
        fleet: Fleet,
        workload: Workload,
        instances: list[Instance],
        outages: Sequence[Outage],
        *,
        counts: bool,
    ) -> None:
        self.arrivals: Sequence[Arrival] = workload.arrivals
        self.arrived = [ticks(item.at_s) for item in self.arrivals]
        self.served: list[Served | None] = [None] * len(self.arrivals)
        self.placed = [0] * len(self.arrivals)
        self.horizon = ticks(workload.horizon_s)
        self.by_horizon = [0] * len(fleet.apps)
        self._fleet = fleet
        self._instances = instances
        self._outages = outages
        self.dispatch = Dispatch(fleet, instances, [item.app for item in self.arrivals], looks=not counts)
        self._prompts = Prompts(self.arrivals, are_looked_at=not counts)
        self._next: dict[int, list[int]] = {}
        for number, item in enumerate(self.arrivals):
            if item.after is not None:
                self._next.setdefault(item.after, []).append(number)

    def run(self, members: frozenset[int]) -> None:
        """Run the instances of ``members`` until all that is asked of them has ended."""
        apps = {app for app, item in enumerate(self._fleet.apps) if item.instances[0] in members}
        pending = [
            (self.arrived[number], number)
            for number, item in enumerate(self.arrivals)
            if item.app in apps and item.after is None
        ]
        pending.append((self.horizon, _HORIZON))
        pending += [
            (ticks(item.at_s), _OUTAGE + index) for index, item in enumerate(self._outages) if item.instance in members
        ]
        if self._fleet.moves and len(members) > 1 and len(pending) > 1:
            pending.append((_REVIEW_TICKS, _REVIEW))
        heapq.heapify(pending)
        own = [self._instances[index] for index in sorted(members)]
        while pending or any(item.live for item in own):
            until = pending[0][0] if pending else None
            self._advance(members, pending)
            if until is None or pending[0][0] < until:
                continue  # the turn after an answer comes before what was thought to be next
            if any(item.live and item.now < until for item in own):
                continue
            number = heapq.heappop(pending)[1]
            if number == _HORIZON:
                self._count_by_horizon(apps, own)
            elif number == _REVIEW:
                self._send(self.dispatch.review(members, until), pending)
                if pending or any(item.live for item in own):
                    since = until if any(item.live for item in own) else max(until, pending[0][0])
                    heapq.heappush(pending, (since + _REVIEW_TICKS, _REVIEW))
            elif number >= _OUTAGE:
                outage = self._outages[number - _OUTAGE]
                self.dispatch.take_out(outage)
                self._send(self.dispatch.turn_out(outage.instance, until), pending)
            elif (delivery := self.dispatch.delivered(number)) is not None:
                self._admit(number, delivery.request, until, pending, delivery.left)
                self._send(self.dispatch.turn_out(self.placed[number], until), pending)
            else:
                self._arrive(number, pending)

    def _advance(self, members: Set[int], pending: list[tuple[int, int]]) -> None:
        """To the next thing that comes. Who answers is never ahead of who reads for it."""
        until, follows = pending[0][0] if pending else None, bool(self._next)
        readers = [index for index in sorted(members) if self._instances[index].reads]
        for index in readers:
            for served in self._instances[index].advance(until, stops_at_end=follows):
                self._end(served, pending)
            self._send(self.dispatch.pass_on(index), pending)
        bounds = [self._instances[index].now for index in readers if self._instances[index].live]
        upto = min([*bounds, *(at for at, _ in pending[:1])], default=None)
        for index in sorted(members):
            if not self._instances[index].reads:
                for served in self._instances[index].advance(upto, stops_at_end=follows):
                    self._end(served, pending)

    def _arrive(self, number: int, pending: list[tuple[int, int]]) -> None:
        item, at = self.arrivals[number], self.arrived[number]
        app = self._fleet.apps[item.app]
        request = Request(
            id=str(number),
            app=item.app,
            chain=app.chain,
            isolation_group=app.isolation_group if self._fleet.caches else f"request {number}",
            prompt=self._prompts.make(number),
            emitted=0,
            max_tokens=item.output_tokens,
            stop_token_ids=(),
            sampling=_GREEDY,
            priority=app.priority,
        )
        self.placed[number], there = self.dispatch.choose(number, request, at)
        if there is None:
            self._admit(number, request, at, pending)
            if self.dispatch.has_failed(self.placed[number]):
                self._send(self.dispatch.turn_out(self.placed[number], at), pending)
        else:
            heapq.heappush(pending, (there, number))

    def _admit(
        self, number: int, request: Request, at: int, pending: list[tuple[int, int]], left: Left | None = None
    ) -> None:
        for served in self._instances[self.placed[number]].admit(request, number=number, at=at, left=left):
            self._end(served, pending)

    def _send(self, what: Iterable[HandOver | Served], pending: list[tuple[int, int]]) -> None:
        """Requests are on their way to other instances, or at their end."""
        for item in what:
            if isinstance(item, Served):
                self._end(item, pending)
            else:
                self.placed[item.number] = item.target
                heapq.heappush(pending, (item.there, item.number))

    def _end(self, served: Served, pending: list[tuple[int, int]]) -> None:
        number = served.number
        self.served[number] = served
        said = self._prompts.said(number) if self.dispatch.looks and number in self._next else ()
        self.dispatch.ended(served, said)
        for follower in self._next.get(number, ()):
            self.arrived[follower] = served.end + ticks(self.arrivals[follower].at_s)
            heapq.heappush(pending, (self.arrived[follower], follower))

    def _count_by_horizon(self, apps: Set[int], instances: Sequence[Instance]) -> None:
        given = [(item.number, item.tokens) for item in self.served if item is not None]
        given += [item for instance in instances for item in instance.tokens_of_live()]
        given += self.dispatch.on_the_way()
        for number, tokens in given:
            app = self.arrivals[number].app
            if app in apps:
                self.by_horizon[app] += tokens


def _components(fleet: Fleet) -> tuple[frozenset[int], ...]:
    """Instances that serve an app together, and those that do so with them."""
    group = list(range(len(fleet.instances)))
    for app in fleet.apps:
        merged = {group[index] for index in app.all}
        least = min(merged)
        group = [least if item in merged else item for item in group]
    return tuple(frozenset(i for i, item in enumerate(group) if item == own) for own in sorted(set(group)))
