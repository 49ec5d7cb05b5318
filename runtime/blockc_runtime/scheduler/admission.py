"""Which requests are taken on, and what is known of one when it comes.

In: requests, and the time. Out: why one can never run, or the record that it begins as. Invariant: what is taken on
fits the model, a step and the KV cache when it is alone.
"""

from __future__ import annotations

from blockc_runtime.kv.index import KvIndex
from blockc_runtime.kv.prefix import Prefix
from blockc_runtime.limits import EngineLimits
from blockc_runtime.request import Request
from blockc_runtime.scheduler.fair_queue import FairQueue
from blockc_runtime.scheduler.live_request import LiveRequest
from blockc_runtime.scheduler.residents import Residents

# For apps without a target.
_LENIENT_TTFT_S = 10.0


class Admission:
    """``queue`` and ``residents``: those of the scheduler; ``max_waiting``: requests of a tenant in the queue."""

    def __init__(
        self, limits: EngineLimits, kv: KvIndex, *, queue: FairQueue, residents: Residents, max_waiting: int
    ) -> None:
        self._limits = limits
        self._kv = kv
        self._queue = queue
        self._residents = residents
        self._max_waiting = max_waiting
        self._arrivals = 0

    def problem(self, request: Request) -> str | None:
        """Say why a request cannot be taken, in words that tell nothing of other tenants."""
        if not (0 <= request.app < len(self._limits.tenants) and 0 <= request.chain < len(self._limits.chains)):
            return "the plan in force does not have this model"
        if not request.prompt:
            return "the prompt is empty"
        if (problem := self._residents.problem(request.chain)) is not None:
            return problem
        chain = self._limits.chains[request.chain]
        most = self._most_tokens(request.chain) - chain.draws
        if len(request.prompt) > most:
            room = "with room for an answer " if chain.draws else ""
            return f"the prompt has {len(request.prompt)} tokens; {room}{most} fit"
        if chain.whole and len(request.prompt) > self._limits.max_batched_tokens:
            return f"a text of {len(request.prompt)} tokens is too long for a step of {self._limits.max_batched_tokens}"
        shortage = self._kv.shortage(request.chain, self._longest(request) - chain.draws)  # the last one needs no KV
        if shortage is not None:
            return f"prompt and answer are too long for the KV cache: {shortage}"
        if self._queue.waiting(self._limits.tenants[request.app]) >= self._max_waiting:
            return f"{self._max_waiting} requests are waiting already"
        return None

    def item(self, request: Request, now_s: float) -> LiveRequest:
        """What a request without a problem begins as."""
        chain = self._limits.chains[request.chain]
        tokens = [*chain.virtual_tokens, *request.prompt]
        # Of what somebody else has computed there are no scores: nothing is found that is not its own.
        group = f"{request.isolation_group}/{request.id}" if chain.token_classes else request.isolation_group
        self._arrivals += 1
        return LiveRequest(
            request=request,
            tenant=self._limits.tenants[request.app],
            arrival=self._arrivals,
            due_s=now_s + self._target_s(request.app),
            limit_tokens=self._longest(request),
            tokens=tokens,
            prefix=Prefix(group, tokens),
            virtual=len(chain.virtual_tokens),
            whole=chain.whole,
            token_classes=chain.token_classes,
        )

    def _target_s(self, app: int) -> float:
        """How long after its arrival the first token of a request is due."""
        target_s = self._limits.ttft_targets_s[app] if self._limits.ttft_targets_s else None
        return _LENIENT_TTFT_S if target_s is None else target_s

    def _longest(self, request: Request) -> int:
        """Virtual tokens, prompt and all tokens that may still come."""
        chain = self._limits.chains[request.chain]
        wanted = len(request.prompt) + (max(1, request.max_tokens - request.emitted) if chain.draws else 0)
        virtual = len(chain.virtual_tokens)
        return virtual + min(wanted, self._most_tokens(request.chain))

    def _most_tokens(self, chain: int) -> int:
        """The most tokens of prompt and answer."""
        limits = self._limits.chains[chain]
        return limits.max_model_len - len(limits.virtual_tokens)
