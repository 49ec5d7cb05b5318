"""The scheduler: which rows run in the next step. A pure state machine: no I/O, no clock, no randomness, no torch.

In: requests, results of steps, the time as an argument. Out: steps and events. The engine drives it with real time,
the fault tests with a seeded adversary. Invariants: every request ends exactly once; a page is handed on only after
the last step that may touch it; what a request yields does not depend on its neighbours.

Rows of running requests that decode come first, then prefill chunks in what is left of the token budget. Requests are
taken in from the tenant with the smallest virtual counter of service (VTC, arXiv 2401.00588), first come first
served within a tenant. When pages run out, the youngest request of the tenant with the largest counter gives its own
back and is computed again later: prompt and emitted tokens are kept, so its text does not change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from blockc_runtime.kv.index import KvIndex
from blockc_runtime.kv.prefix import Prefix
from blockc_runtime.limits import EngineLimits
from blockc_runtime.request import EndEvent, Event, FinishReason, Request, TokensEvent
from blockc_runtime.step import Fault, Launch, Row, RowResult, Step, StepResult

# VTC's weights: an output token costs more than a prompt token because it takes a step of its own.
_PROMPT_COST = 1.0
_OUTPUT_COST = 2.0
_MAX_RETRIES = 3


@dataclass(slots=True)
class _Running:
    """A request in the engine. ``tokens``: prompt and output; the first ``computed`` of them are in the KV cache.

    ``cached``: prompt tokens that were found in the cache when it first ran, which is also when it was ``charged``.
    """

    request: Request
    order: int
    tenant: int
    tokens: list[int]
    prefix: Prefix
    computed: int = 0
    cached: int = 0
    retries: int = 0
    charged: bool = False
    in_flight: bool = False
    ended: bool = False

    @property
    def outputs(self) -> int:
        return self.request.emitted + len(self.tokens) - len(self.request.prompt)

    @property
    def remaining(self) -> int:
        return len(self.tokens) - self.computed


@dataclass(slots=True)
class _Draft:
    """A step being put together."""

    tokens_left: int
    rows_left: int
    chosen: list[tuple[_Running, int]] = field(default_factory=list)

    def holds(self, item: _Running) -> bool:
        return any(own is item for own, _ in self.chosen)

    def add(self, item: _Running, count: int) -> None:
        self.chosen.append((item, count))
        self.tokens_left -= count
        self.rows_left -= 1


class Scheduler:
    """See the module's text. ``max_waiting``: requests beyond it are refused at once."""

    def __init__(self, limits: EngineLimits, kv: KvIndex, *, max_waiting: int = 4096) -> None:
        self._limits = limits
        self._kv = kv
        self._max_waiting = max_waiting
        self._requests: dict[str, _Running] = {}
        self._running: dict[str, _Running] = {}  # those with page tables, oldest first
        self._waiting: list[deque[_Running]] = [deque() for _ in limits.weights]
        self._service = [0.0] * len(limits.weights)
        self._in_flight: dict[int, list[_Running]] = {}
        self._orders = 0
        self._steps = 0

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._requests)

    @property
    def running(self) -> int:
        """Requests that hold pages."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that hold none."""
        return sum(map(len, self._waiting))

    @property
    def service(self) -> tuple[float, ...]:
        """Virtual counter of each tenant: cost served, divided by its weight."""
        return tuple(self._service)

    def admit(self, request: Request, now_s: float = 0.0) -> tuple[Event, ...]:
        """Queue a request; its end, if it can never run."""
        del now_s
        if request.id in self._requests:
            raise ValueError(f"the request {request.id} is running already")
        problem = self._problem(request)
        if problem is not None:
            return (_end(request.id, "error", problem),)
        if request.emitted >= request.max_tokens:
            return (_end(request.id, "length"),)
        tenant = self._limits.tenants[request.app]
        tokens = list(request.prompt)
        prefix = Prefix(request.isolation_group, tokens)
        item = _Running(request=request, order=self._orders, tenant=tenant, tokens=tokens, prefix=prefix)
        self._orders += 1
        self._lift(tenant)
        self._requests[request.id] = item
        self._waiting[tenant].append(item)
        return ()

    def schedule(self, now_s: float) -> Step | None:
        """Choose the rows of the next step; None if nothing can run."""
        del now_s  # deadlines come with SLOs
        draft = _Draft(tokens_left=self._limits.max_batched_tokens, rows_left=self._limits.max_rows)
        for item in sorted(self._running.values(), key=lambda item: (item.remaining > 1, item.order)):
            if not item.in_flight and item.request.id in self._running:
                self._continue(item, draft)
        self._take_in(draft)
        if not draft.chosen:
            return None
        step = self._step(draft)
        self._in_flight[step.id] = [self._requests[row.request] for row in step.rows]
        return step

    def complete(self, step: Step, result: StepResult, now_s: float) -> tuple[Event, ...]:
        """Take a step's results in. Those of requests that ended meanwhile are dropped."""
        del now_s
        events: list[Event] = []
        for item, row, outcome in zip(self._in_flight.pop(step.id), step.rows, result.rows, strict=True):
            item.in_flight = False
            if item.ended:
                self._kv.release(item.request.id)
            elif outcome.fault is not None:
                events += self._fail(item, outcome.fault)
            else:
                events += self._advance(item, row, outcome)
        return tuple(events)

    def cancel(self, request: str) -> tuple[Event, ...]:
        """Drop a request, whatever its state; nothing if it is unknown."""
        item = self._requests.get(request)
        return () if item is None else self._finish(item, "cancelled")

    def _problem(self, request: Request) -> str | None:
        limit = self._limits.chains[request.chain].max_model_len
        longest = min(limit, len(request.prompt) + request.max_tokens - request.emitted)
        if not request.prompt:
            return "the prompt is empty"
        if len(request.prompt) >= limit:
            return f"the prompt has {len(request.prompt)} tokens; with room for an answer {limit - 1} fit"
        if self._kv.shortage(request.chain, longest) is not None:
            return f"{longest} tokens need more KV pages than the plan gives this model"
        if self.waiting >= self._max_waiting:
            return f"{self._max_waiting} requests are waiting already"
        return None

    def _lift(self, tenant: int) -> None:
        """A tenant that was idle starts level with the least served active one: idling earns no credit."""
        active = {item.tenant for item in self._requests.values()}
        if active and tenant not in active:
            self._service[tenant] = max(self._service[tenant], min(self._service[other] for other in active))

    def _continue(self, item: _Running, draft: _Draft) -> None:
        """Another token or chunk of a request that has pages."""
        if draft.rows_left < 1 or draft.tokens_left < 1:
            return
        count = min(item.remaining, draft.tokens_left)
        while not self._kv.reserve(item.request.id, item.computed + count):
            victim = self._victim(draft)
            if victim is None:
                return
            self._preempt(victim)
            if victim is item:
                return
        draft.add(item, count)

    def _take_in(self, draft: _Draft) -> None:
        """Start waiting requests, each with pages for its whole prompt."""
        while draft.rows_left > 0 and draft.tokens_left > 0 and len(self._running) < self._limits.max_rows:
            tenants = [index for index, queue in enumerate(self._waiting) if queue]
            if not tenants:
                return
            tenant = min(tenants, key=lambda index: (self._service[index], self._waiting[index][0].order))
            item = self._waiting[tenant][0]
            request = item.request
            reused = self._kv.acquire(request.id, chain=request.chain, prefix=item.prefix)
            if reused is None:
                # Whoever is served least waits for pages, and nobody overtakes: small requests would starve large ones.
                return
            count = min(len(item.tokens) - reused, draft.tokens_left)
            if not self._kv.reserve(request.id, reused + count):
                self._kv.release(request.id)
                return
            item.computed = reused
            self._waiting[tenant].popleft()
            self._running[request.id] = item
            if not item.charged:
                item.charged = True
                item.cached = item.computed
                self._service[tenant] += _PROMPT_COST * item.remaining / self._limits.weights[tenant]
            draft.add(item, min(item.remaining, draft.tokens_left))

    def _victim(self, draft: _Draft) -> _Running | None:
        """Who gives its pages back: the youngest of the most served tenant, not in this step or one in flight."""
        candidates = [item for item in self._running.values() if not item.in_flight and not draft.holds(item)]
        return max(candidates, key=lambda item: (self._service[item.tenant], item.order), default=None)

    def _preempt(self, item: _Running) -> None:
        self._kv.release(item.request.id)
        del self._running[item.request.id]
        item.computed = 0
        queue = self._waiting[item.tenant]
        place = next((index for index, other in enumerate(queue) if other.order > item.order), len(queue))
        queue.insert(place, item)

    def _step(self, draft: _Draft) -> Step:
        """Rows of one chain side by side; each segment once, on the union of its rows."""
        chosen = sorted(draft.chosen, key=lambda pair: (pair[0].request.chain, pair[0].order))
        rows: list[Row] = []
        for item, count in chosen:
            item.in_flight = True
            rows.append(self._row(item, count))
        self._steps += 1
        return Step(id=self._steps, epoch=0, rows=tuple(rows), launches=tuple(self._launches(rows)))

    def _row(self, item: _Running, count: int) -> Row:
        reaches_end = item.computed + count == len(item.tokens)
        return Row(
            request=item.request.id,
            chain=item.request.chain,
            tokens=tuple(item.tokens[item.computed : item.computed + count]),
            start=item.computed,
            pages=self._kv.tables(item.request.id, item.computed + count),
            samples=1 if reaches_end else 0,
            sampling=item.request.sampling if reaches_end else None,
            output_index=item.outputs,
        )

    def _launches(self, rows: Sequence[Row]) -> Iterator[Launch]:
        passing: dict[tuple[int, int], list[int]] = {}
        for index, row in enumerate(rows):
            chain = self._limits.chains[row.chain]
            for segment in chain.segments:
                passing.setdefault((segment, chain.instance), []).append(index)
        for segment, instance in sorted(passing):
            yield Launch(instance=instance, segment=segment, micro_batch=0, rows=tuple(passing[segment, instance]))

    def _advance(self, item: _Running, row: Row, outcome: RowResult) -> tuple[Event, ...]:
        """Commit what was computed, append what was drawn, and see whether that ends the request."""
        item.computed += len(row.tokens)
        self._kv.commit(item.request.id, item.computed)
        if not outcome.tokens:
            return ()
        request = item.request
        item.tokens += outcome.tokens
        self._service[item.tenant] += _OUTPUT_COST * len(outcome.tokens) / self._limits.weights[item.tenant]
        event = TokensEvent(request=request.id, tokens=outcome.tokens, logprobs=outcome.logprobs)
        if outcome.tokens[-1] in request.stop_token_ids:
            return (event, *self._finish(item, "stop"))
        limit = self._limits.chains[request.chain].max_model_len
        if item.outputs >= request.max_tokens or len(item.tokens) >= limit:
            return (event, *self._finish(item, "length"))
        return (event,)

    def _fail(self, item: _Running, fault: Fault) -> tuple[Event, ...]:
        """A fault of the worker is not the request's doing: it is computed again, a few times."""
        if fault.scope == "worker" and item.retries < _MAX_RETRIES:
            item.retries += 1
            self._preempt(item)
            return ()
        return self._finish(item, "error", fault.message)

    def _finish(self, item: _Running, reason: FinishReason, message: str = "") -> tuple[Event, ...]:
        request = item.request
        item.ended = True
        del self._requests[request.id]
        if self._running.pop(request.id, None) is None:
            self._waiting[item.tenant].remove(item)
        elif not item.in_flight:
            self._kv.release(request.id)
        return (_end(request.id, reason, message, cached_tokens=item.cached),)


def _end(request: str, reason: FinishReason, message: str = "", *, cached_tokens: int = 0) -> EndEvent:
    return EndEvent(request=request, reason=reason, message=message, cached_tokens=cached_tokens)
