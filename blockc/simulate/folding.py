"""The runtime's scheduler, with one more verb: many steps in which everybody decodes, taken at once.

In: a scheduler between two steps. Out: for how many steps nothing can happen but that each running request gets one
token, and the state after some of them. Invariant: after ``fold(run, n)`` the scheduler is in the state in which ``n``
times `schedule` and `complete` would have left it, page ids aside; `tests/simulate/test_folding.py` compares them.
Where steps overlap, one is in flight before and after (`fold_behind`).

This is for requests without stop tokens: their ends are known.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from blockc_runtime.kv.index import KvIndex, pages_for, passed_pages
from blockc_runtime.limits import EngineLimits
from blockc_runtime.request import EndEvent, Request
from blockc_runtime.scheduler import Scheduler
from blockc_runtime.scheduler.launches import LaunchPlan, Passage
from blockc_runtime.scheduler.live_request import LiveRequest
from blockc_runtime.step import Launch, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRun:
    """Who decodes, and for how many steps nothing else happens. ``steps`` is at least 2."""

    items: tuple[LiveRequest, ...]
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawn:
    """A request as it was admitted, how many of its tokens have KV here, how many of its prompt's were found."""

    request: Request
    computed: int
    cached_tokens: int


class _NoLaunches(LaunchPlan):
    """Rows in their order; where rows pass all layers a step is priced by them, and nobody looks at its launches."""

    def launches(self, rows: tuple[Passage, ...]) -> tuple[Launch, ...]:
        del rows
        return ()


class FoldingScheduler(Scheduler):
    """See the module's text. It knows the inside of its base class, and adds nothing to its state."""

    def __init__(self, limits: EngineLimits, kv: KvIndex, *, max_waiting: int = 1024) -> None:
        super().__init__(limits, kv, max_waiting=max_waiting)
        if limits.prefill_parts == 1:
            self._launch_plan = _NoLaunches(limits)
        self._is_exact = all(math.frexp(weight)[0] == 0.5 for weight in limits.weights)
        self._page_groups = tuple(
            tuple((index, limits.groups[index]) for index in chain.groups) for chain in limits.chains
        )

    def withdraw(self, name: str) -> Withdrawn:
        """A request goes elsewhere. What a step in flight draws for it is nobody's."""
        item = self._live[name]
        request, computed = item.request, item.computed
        (event,) = self.cancel(name)
        assert isinstance(event, EndEvent), "a request that is cancelled ends"
        return Withdrawn(request=request, computed=computed, cached_tokens=event.cached_tokens)

    def decode_run(self, *, at_most: int) -> DecodeRun | None:
        """The steps ahead that are alike; None where the next one may be another, or there is one only."""
        items = tuple(self._running.values())
        room = min(self._limits.max_rows, self._limits.max_batched_tokens)
        ahead = len(self._in_flight)
        if ahead != self._limits.overlaps or not 0 < len(items) <= room:
            return None
        if ahead and [len(flight.items) for flight in self._in_flight.values()] != [len(items)]:
            return None
        steps = at_most
        for item in items:
            if item.computed + 1 != len(item.tokens) or item.ahead != ahead or item.due != ahead:
                return None
            left = item.limit_tokens - len(item.tokens) - ahead
            if left < steps:
                steps = left
        if steps < 2 or (len(self._queue) and not self._nobody_starts()):
            return None
        steps = self._until_pages_lack(items, steps)
        return DecodeRun(items=items, steps=steps) if steps >= 2 else None

    def fold(self, run: DecodeRun, steps: int, answers: dict[str, int]) -> tuple[EndEvent, ...]:
        """Take ``steps`` of a run: each request gets the token that ``answers`` has for it, again and again."""
        assert 1 <= steps <= run.steps, "a run ends before that"
        charge, kv = self._queue.charge, self._kv
        # Sums of numbers that are whole in binary do not depend on how they are grouped.
        at_once = steps - 1 if self._is_exact else 1
        for item in run.items:
            kv.reserve(item.id, item.computed + steps)
            item.tokens.extend([answers[item.id]] * steps)
            item.computed += steps
            kv.commit(item.id, item.computed)
            for _ in range(0, steps - 1, at_once or 1):
                charge(item.tenant, output_tokens=at_once)
        self._steps += steps
        # Who ends does so in the order of the last step's rows, which returns their pages in that order.
        rank, turn = self._launch_plan.rank, self._queue.turn
        order = sorted(sorted(run.items, key=turn), key=lambda item: rank(item.request.chain))
        ended = []
        for item in order:
            charge(item.tenant, output_tokens=1)
            if len(item.tokens) >= item.limit_tokens:
                ended.append(self._finish(item, "length"))
        return tuple(ended)

    def fold_behind(self, run: DecodeRun, steps: int, answers: dict[str, int]) -> Step:
        """Issue ``steps`` of a run behind the step in flight; all is taken in but the last one, which is returned."""
        assert 2 <= steps <= run.steps, "a run ends before that"
        kv, charge = self._kv, self._queue.charge
        at_once = steps - 1 if self._is_exact else 1
        for item in run.items:
            kv.reserve(item.id, item.reached + steps)
            item.tokens.extend([answers[item.id]] * steps)
            item.computed += steps
            item.ahead = item.due = 0
            kv.commit(item.id, item.computed)
            for _ in range(0, steps - 1, at_once):
                charge(item.tenant, output_tokens=at_once)
        # The last one is issued before the one ahead of it is charged.
        picks = [(item, 1) for item in sorted(run.items, key=self._queue.turn)]
        (before,) = self._in_flight
        self._steps += steps - 1
        self._overlapped += steps - 1
        step = self._issue(picks)
        del self._in_flight[before]
        for item in run.items:
            charge(item.tenant, output_tokens=1)
        return step

    def _nobody_starts(self) -> bool:
        """Whether all places are taken, and stay with those who have them however far the counters go."""
        if len(self._running) < self._max_running:
            return False
        held = Counter(item.tenant for item in self._running.values())
        working = held.keys() | self._queue.tenants()
        shares = {tenant: self._queue.share(tenant, self._max_running, working) for tenant in working}
        takes = any(held[tenant] < shares[tenant] for tenant in self._queue.tenants())
        gives = any(count > shares[tenant] for tenant, count in held.items())
        return not (takes and gives)

    def _until_pages_lack(self, items: tuple[LiveRequest, ...], steps: int) -> int:
        """So many of the steps need no page that somebody else has, and pass none out of a window."""
        free = self._kv.free_pages()
        while steps >= 2:
            needed = [0] * len(free)
            for item in items:
                for index, group in self._page_groups[item.request.chain]:
                    start, end = item.reached, item.reached + steps
                    if group.window is not None and passed_pages(end, group) > passed_pages(item.computed, group):
                        return self._until_pages_lack(items, steps // 2)
                    needed[index] += pages_for(end, group.page_tokens) - pages_for(start, group.page_tokens)
            if all(count <= there for count, there in zip(needed, free, strict=True)):
                return steps
            steps //= 2
        return steps
