"""Whose turn it is: waiting requests, and what each tenant has been served.

In: requests and charges. Out: the next request to start. This is VTC (arXiv 2401.00588, algorithm 2): the tenant with
the smallest virtual counter goes first, a counter grows by what its tenant is served divided by the tenant's weight,
and a tenant that had nothing waiting is lifted to the smallest counter of those who have, less the tokens of one step:
idling earns no more credit than that, and of two requests that come at once the second one needs not wait for a turn.
Within a tenant goes by priority, then by when the first token is due (its app's target, or a lenient one, after its
arrival): least slack first, and nobody of equal priority waits for ever.

Requests that need other things (KV groups, slots for sides) wait in other *lanes*: who lacks pages of one model must
not hold up another's.
Prompts are charged as they are read, and what the cache has of them when they start: an order that left that out would
tell what is in it. Charged all at once, a long prompt would lift newcomers to a level that its tenant has not been
served yet, and have them wait for the whole of it.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Sequence

from blockc_runtime.limits import EngineLimits
from blockc_runtime.scheduler.live_request import LiveRequest, Order
from blockc_runtime.scheduler.residents import Need, chain_needs

# The paper's costs (section 5.1): an output token takes a step of its own.
PROMPT_COST = 1.0
OUTPUT_COST = 2.0
# Of the probabilities of an output token: a pass over the vocabulary more, and a message.
LOGPROBS_COST = 1.0

Turn = tuple[float, int, Order]
_Lane = list[tuple[Order, LiveRequest]]  # a heap; those that no longer wait are skipped when met


class FairQueue:
    """Waiting requests by tenant and lane. ``counters[t]``: virtual service of tenant t."""

    def __init__(self, limits: EngineLimits, served: Sequence[float] = ()) -> None:
        """``served``: counters to begin with, by tenant."""
        if any(weight <= 0 for weight in limits.weights):
            raise ValueError(f"weights must be positive: {limits.weights}")
        self.counters = list(served) or [0.0] * len(limits.weights)
        self._weights = limits.weights
        self._credit = PROMPT_COST * limits.step_work
        self._lane_of = chain_needs(limits)
        self._lanes: dict[int, dict[tuple[Need, ...], _Lane]] = {}  # of tenants with something waiting
        self._waiting = [0] * len(limits.weights)
        self.waiting_of: Counter[int] = Counter()  # requests that wait, by chain
        self._last_served: int | None = None

    def __len__(self) -> int:
        return sum(self._waiting)

    def waiting(self, tenant: int) -> int:
        """Requests of a tenant that wait."""
        return self._waiting[tenant]

    def turn(self, item: LiveRequest) -> Turn:
        """Sort key: the least served tenant first, in its own order."""
        return (self.counters[item.tenant], item.tenant, item.order)

    def goes_on(self, prefill: LiveRequest, *, before: LiveRequest) -> bool:
        """Whether a prefill goes on before a request that waits to start; between level tenants the waiting one."""
        if prefill.tenant == before.tenant:
            return prefill.order < before.order
        return self.counters[prefill.tenant] < self.counters[before.tenant]

    def enter(self, item: LiveRequest) -> None:
        """A new request starts to wait."""
        if self._waiting[item.tenant] == 0:
            self._lift(item.tenant)
        self.put_back(item)

    def put_back(self, item: LiveRequest) -> None:
        """A request waits again, where it was in its tenant's order; its tenant is not lifted for that."""
        lanes = self._lanes.setdefault(item.tenant, {})
        heapq.heappush(lanes.setdefault(self._lane_of[item.request.chain], []), (item.order, item))
        self._waiting[item.tenant] += 1
        self.waiting_of[item.request.chain] += 1

    def leave(self, item: LiveRequest) -> None:
        """A request waits no longer: it runs, or has ended (its state says so already)."""
        lanes, needs = self._lanes[item.tenant], self._lane_of[item.request.chain]
        if lanes[needs][0][1] is item:  # always so for one that runs, which may come back; one that ended may stay
            heapq.heappop(lanes[needs])
            if not lanes[needs]:
                del lanes[needs]
        self._waiting[item.tenant] -= 1
        self.waiting_of[item.request.chain] -= 1
        if self._waiting[item.tenant] == 0:
            del self._lanes[item.tenant]
            self._last_served = item.tenant

    def head(self, blocked: Collection[Need], *, among: Collection[int] | None = None) -> LiveRequest | None:
        """Return the request whose turn it is among those that need nothing that is ``blocked``.

        ``among``: of these tenants only.
        """
        best: LiveRequest | None = None
        least = float("inf")
        for tenant, lanes in self._lanes.items():
            counter = self.counters[tenant]
            if among is not None and tenant not in among:
                continue
            if counter < least or (best is not None and counter == least and tenant < best.tenant):
                candidate = _oldest(lanes, blocked)
                if candidate is not None:
                    best, least = candidate, counter
        return best

    def charge(self, tenant: int, *, prompt_tokens: int = 0, output_tokens: int = 0, logprobs: int = 0) -> None:
        """Add what a tenant was served to its counter. ``logprobs``: tokens whose probabilities it got."""
        cost = PROMPT_COST * prompt_tokens + OUTPUT_COST * output_tokens + LOGPROBS_COST * logprobs
        self.counters[tenant] += cost / self._weights[tenant]

    def charge_prompt(self, item: LiveRequest, *, until: int) -> None:
        """Charge what of virtual tokens and prompt has been read, or found, up to ``until`` for the first time."""
        until = min(until, item.virtual + len(item.request.prompt))
        if until > item.charged:
            self.charge(item.tenant, prompt_tokens=until - item.charged)
            item.charged = until

    def share(self, tenant: int, places: int, working: Collection[int]) -> int:
        """So many of ``places`` are a tenant's by weight among those who have work; at least one."""
        return max(1, int(places * self._weights[tenant] / sum(self._weights[other] for other in working)))

    def tenants(self) -> Collection[int]:
        """Those with something waiting."""
        return self._lanes.keys()

    def _lift(self, tenant: int) -> None:
        others = self._lanes.keys()
        if others:
            level = min(map(self.counters.__getitem__, others))
        elif self._last_served is not None:
            level = self.counters[self._last_served]
        else:
            return
        self.counters[tenant] = max(self.counters[tenant], level - self._credit / self._weights[tenant])


def _oldest(lanes: dict[tuple[Need, ...], _Lane], blocked: Collection[Need]) -> LiveRequest | None:
    best: LiveRequest | None = None
    for needs, lane in lanes.items():
        while lane and lane[0][1].state != "waiting":
            heapq.heappop(lane)
        if lane and (best is None or lane[0][0] < best.order) and not any(need in blocked for need in needs):
            best = lane[0][1]
    return best
