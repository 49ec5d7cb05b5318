"""Filling a step: who gets a row, and who gives pages back for it.

In: the requests with pages in the order of their turn, those that wait, and the limits of a step. Out: the picks of a
step. Decode rows come first, then prefill chunks in what is left of the token budget (a long prompt goes on step by
step); where a running prefill and a waiting request compete, whoever has the turn goes first. Before all that, a tenant
with more than its share of places gives one up to a tenant that waits with less than its own.

Work. Where prompts may go through the layers in parts (`parts.py`), a step computes a part of its token budget only,
and a chunk that is larger passes a part of the layers in each of several steps. It is small enough to fit beside all
that decodes, and who has the turn goes first: a parked chunk waits meanwhile.

A text that has to stand in one step as a whole waits for one with room for it. If this one has none, no request starts
after it, and in the next step it goes first, unless those who decode had to stand back in this one.

Pages. A waiting request starts only when its whole context fits, with a page to spare for each running one, so only
decode rows (and chunks in windowed groups) ask for more later. A decode row that gets none takes them from the last
in turn (the youngest of the most served tenant) that uses the same groups; that may be itself. Whoever starts was next
in turn and nobody overtakes it for the groups it needs: running requests end, so it gets its pages at last.

Steps in flight. Where rows may follow rows in flight, a request whose place or pages another one is to get may be in
flight itself, and nothing can be taken from it before that step is done. Then there is no step now (``waits_for``), and
the choice is made when nothing is in flight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Literal

from blockc_runtime.kv.index import KvIndex
from blockc_runtime.limits import EngineLimits
from blockc_runtime.scheduler.fair_queue import FairQueue
from blockc_runtime.scheduler.live_request import LiveRequest
from blockc_runtime.scheduler.parts import Chunk, parts_of
from blockc_runtime.scheduler.residents import Need, Residents

# What of a request in flight another one is to get.
Wait = Literal["places", "pages"]


class StepDraft:
    """A step being put together. ``running`` is sorted by turn; those preempted leave it."""

    def __init__(
        self,
        *,
        limits: EngineLimits,
        kv: KvIndex,
        queue: FairQueue,
        residents: Residents,
        running: list[LiveRequest],
        max_running: int,
        preempt: Callable[[LiveRequest], None],
        now_s: float,
    ) -> None:
        self.picks: list[tuple[LiveRequest, int]] = []
        self._limits = limits
        self._kv = kv
        self._queue = queue
        self._residents = residents
        self._running = running
        self._max_running = max_running
        self._preempt = preempt
        self._now_s = now_s
        self._texts: list[LiveRequest] = []  # those among the picks that went first
        self._tokens_left = limits.max_batched_tokens
        self._rows_left = limits.max_rows
        self._work_left = limits.step_work
        self._reads = False  # whether a prompt has a row
        self.waits_for: Wait | None = None

    def make_places(self, *, start: Callable[[LiveRequest, int], None]) -> None:
        """Where all places are taken, who has more than a share of them gives one to who waits with less than one.

        Else a tenant that came first would keep the others waiting until its answers end. A place is given up only for
        a request that starts in it at once, and nobody's share is given up: what is preempted comes back.
        """
        if self._places() > 0 or not len(self._queue):
            return
        held = Counter(item.tenant for item in self._running if not item.is_ending)
        working = held.keys() | self._queue.tenants()
        shares = {tenant: self._queue.share(tenant, self._max_running, working) for tenant in working}
        blocked: set[Need] = set()
        while True:
            short = {tenant for tenant in self._queue.tenants() if held[tenant] < shares[tenant]}
            head = self._queue.head(blocked, among=short)
            givers = (item for item in reversed(self._running) if self._gives(item))
            giver = next((item for item in givers if held[item.tenant] > shares[item.tenant]), None)
            if head is None or giver is None:
                return
            if self._queue.counters[giver.tenant] < self._queue.counters[head.tenant]:
                return  # who waits has been served more
            if giver.step is not None:
                self.waits_for = "places"
                return
            if (reused := self._open(head, blocked)) is None:
                continue
            held[giver.tenant] -= 1
            held[head.tenant] += 1
            self._give_up(giver)
            start(head, reused)
            self._running.insert(0, head)  # it has the turn

    def pick_texts(self) -> None:
        """Texts that had their turn in the step before, which had no room for the whole of them."""
        for item in self._running:
            if item.whole and not item.waits and item.remaining > 1 and self._has_room() and self._extend(item):
                self._texts.append(item)

    def pick_decodes(self) -> bool:
        """One token of everyone who decodes, in turn. False: the step has no room for all of them."""
        for item in tuple(self._running):
            # One preempted for another's sake is behind it in turn, so it has no row yet.
            if item.waits or item.remaining != 1 or item.state != "running":
                continue
            if not self._has_room():
                return False
            if self._make_room(item):
                self.picks.append((item, 1))
                self._tokens_left -= 1
                self._work_left -= 1
                self._rows_left -= 1
            elif self.waits_for is not None:
                return True
        return True

    def pick_prefills(self, *, start: Callable[[LiveRequest, int], None]) -> None:
        """Chunks of running prefills and of requests that start now, in turn."""
        prefills = iter(
            [item for item in self._running if not item.waits and item.remaining > 1 and item not in self._texts]
        )
        prefill = next(prefills, None)
        places = self._places()
        blocked: set[Need] = set()
        while self._has_room():
            head = self._queue.head(blocked) if places > 0 else None
            if prefill is not None and (head is None or self._queue.goes_on(prefill, before=head)):
                self._extend(prefill)
                prefill = next(prefills, None)
            elif head is None:
                return
            elif (reused := self._open(head, blocked)) is not None:
                start(head, reused)
                self._running.append(head)
                found = self._extend(head)
                places = places - 1 if found or not head.whole else 0

    def unblock(self) -> None:
        """Every running request lacks pages and no step in flight will free any: let the first in turn have them.

        Only chunks in windowed groups come here. A request alone always fits (`KvIndex.shortage`), unless pages are
        held by requests of another plan (`epoch.Epoch`), which end or give them back.
        """
        first = self._running[0]
        while not self._kv.reserve(first.id, first.computed + 1):
            victim = self._last_using(self._kv.lacking(first.id, first.computed + 1))
            if victim is first:
                return
            self._give_up(victim)
        self._extend(first)

    def _places(self) -> int:
        """How many more requests may run: who ends with the step in flight needs no place in the next one."""
        ending = [item for item in self._running if item.due and item.is_ending]
        return self._max_running - len(self._running) + len(ending)

    def _gives(self, item: LiveRequest) -> bool:
        """Whether it might give up its place: where rows do not follow rows in flight, others than those are found."""
        return item.step is None or (self._limits.overlaps and not item.is_ending)

    def _has_room(self) -> bool:
        return self._tokens_left > 0 and self._rows_left > 0 and self._work_left > 0

    def _pick(self, item: LiveRequest, count: int) -> None:
        self.picks.append((item, count))
        self._tokens_left -= count
        self._work_left -= count if item.chunk is None else item.chunk.work
        self._reads = self._reads or item.remaining > 1
        self._rows_left -= count if item.is_scored else 1  # logits are what a step's rows are limited for

    def _make_room(self, item: LiveRequest) -> bool:
        """Get the pages for one more token; False if ``item`` has to wait, or was preempted itself."""
        needed = item.computed + item.ahead + 1
        while not self._kv.reserve(item.request.id, needed):
            victim = self._last_using(self._kv.lacking(item.id, needed))
            if victim.step is not None:  # it gives its pages back next time
                self.waits_for = "pages" if self._limits.overlaps else None
                return False
            self._give_up(victim)
            if victim is item:
                return False
        return True

    def _extend(self, item: LiveRequest) -> bool:
        """As long a chunk as budget and pages allow; False for none. Pages: only windowed groups can lack them here."""
        if item.chunk is not None:
            fits = item.chunk.work <= self._work_left or not self._reads
            if not fits or item.chunk.tokens > self._tokens_left:
                return False
            self._queue.charge_prompt(item, until=item.reached + item.chunk.read)
            self._pick(item, item.chunk.tokens)
            return True
        count = min(self._tokens_left, item.remaining)
        if item.whole and count < item.remaining:
            return False
        if item.is_scored:
            count = min(count, self._rows_left, self._work_left)
        elif count > self._work_left and not item.whole:
            count = self._work_left if self._reads else max(self._work_left, min(count, self._chunk_room()))
        start = item.reached
        if not self._kv.reserve(item.id, start + count):
            count = self._kv.room(item.id) - start
            if count <= 0:
                return False
            self._kv.reserve(item.id, start + count)
        if count > self._work_left and not item.whole:
            blocks = sum(self._limits.chains[item.request.chain].blocks)
            item.chunk = Chunk(
                tokens=count,
                parts=parts_of(count, work=self._limits.step_work, blocks=blocks, most=self._limits.prefill_parts),
            )
        read = count if item.chunk is None else item.chunk.read
        self._queue.charge_prompt(item, until=start + read)
        self._pick(item, count)
        return True

    def _chunk_room(self) -> int:
        """The most tokens of a chunk that goes in parts: beside what is parked, and beside all that may decode."""
        parked = sum(other.chunk.tokens for other in self._running if other.chunk is not None)
        return self._limits.max_batched_tokens - self._limits.max_rows - parked

    def _open(self, item: LiveRequest, blocked: set[Need]) -> int | None:
        """Get pages for a request's whole context, and a slot; the tokens found, or None, with what ``blocked`` it."""
        chain = item.request.chain
        if (lacking := self._residents.lacking(chain)) is not None:
            blocked.add(lacking)
            item.lacked_s = self._now_s if item.lacked_s is None else item.lacked_s
            return None
        # A page of growth for each neighbour: without, what is let in is soon thrown out again for one of them.
        groups = set(self._groups(item))
        spare = sum(1 for other in self._running if not groups.isdisjoint(self._groups(other)))
        reused = self._kv.acquire(item.id, chain=chain, prefix=item.prefix, spare_pages=spare)
        if reused is None:
            blocked.update(groups)
        else:
            self._residents.hold(chain)
        return reused

    def _last_using(self, groups: frozenset[int]) -> LiveRequest:
        return next(item for item in reversed(self._running) if not groups.isdisjoint(self._groups(item)))

    def _give_up(self, victim: LiveRequest) -> None:
        self._running.remove(victim)
        self._preempt(victim)

    def _groups(self, item: LiveRequest) -> tuple[int, ...]:
        return self._limits.chains[item.request.chain].groups
