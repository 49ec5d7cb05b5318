"""What is under way on one instance, and how long one request more would take there.

In: requests that came and went. Out: estimates in seconds. A step launches each segment and reads each fine-tune that
anybody under way needs, once; every decode row adds its own; prompts are read one after the other. Invariant: a request
that has left changes nothing any more.
"""

from __future__ import annotations

from collections import Counter

from blockc_runtime.router.prices import InstancePrices


class InstanceLoad:
    """One instance."""

    def __init__(self, prices: InstancePrices) -> None:
        self._prices = prices
        self._chain_of: dict[str, int] = {}
        self._tokens: dict[str, float] = {}
        self._unread_s: dict[str, float] = {}  # of those whose prompts have not been read
        self._rows: Counter[int] = Counter()  # requests by chain
        self._segments: Counter[int] = Counter()  # chains under way that pass each
        self._step_s: float | None = None  # of those under way, until one comes or goes

    @property
    def requests(self) -> int:
        """Requests that have not ended."""
        return len(self._chain_of)

    def take(self, request: str, *, chain: int, unread_tokens: int, tokens: float) -> None:
        """A request came, which is expected to have so many ``tokens`` at its end."""
        own = self._prices.chains[chain]
        self._chain_of[request] = chain
        self._tokens[request] = tokens
        self._unread_s[request] = unread_tokens * own.prompt_s
        if chain not in self._rows:
            self._segments.update(own.segments)
        self._rows[chain] += 1
        self._step_s = None

    def started(self, request: str) -> None:
        """Its prompt has been read."""
        self._unread_s.pop(request, None)

    def has_started(self, request: str) -> bool:
        """Whether it has."""
        return request not in self._unread_s

    def drop(self, request: str) -> None:
        """It has ended, or has gone elsewhere."""
        chain = self._chain_of.pop(request)
        del self._tokens[request]
        self._unread_s.pop(request, None)
        self._rows[chain] -= 1
        if not self._rows[chain]:
            del self._rows[chain]
            self._segments.subtract(self._prices.chains[chain].segments)
            self._segments = +self._segments
        self._step_s = None

    def wait_s(self, step_s: float, *, output_tokens: float) -> float:
        """How long one request more waits before its own prompt is read, if a step with it takes ``step_s``.

        Prompts before it are read first. Where all places are taken it also waits for one: those under way end at even
        distances, after as many steps as an answer has tokens.
        """
        places = self._prices.places
        over = len(self._chain_of) + 1 - places
        unread_s = sum(self._unread_s.values())
        return unread_s if over <= 0 else unread_s + over / places * output_tokens * step_s

    def left_s(self, request: str, *, output_tokens: float) -> float:
        """How long a request that came last still takes, with so many tokens to come: `wait_s`, and steps as now."""
        answer_s = output_tokens * self.now_s
        if request not in self._unread_s:
            return answer_s
        over = max(0, len(self._chain_of) - self._prices.places)
        return sum(self._unread_s.values()) + answer_s * (1 + over / self._prices.places)

    def step_s(self, chain: int) -> float:
        """A decode step with one row of ``chain`` more."""
        prices = self._prices
        own = prices.chains[chain]
        if chain in self._rows:
            return self.now_s + own.row_s
        new = sum([prices.segment_s[segment] for segment in own.segments if segment not in self._segments])
        return self.now_s + own.row_s + own.set_up_s + new

    def relief_s(self, chain: int) -> float:
        """By how much a decode step is shorter with one row of ``chain`` less."""
        prices = self._prices
        own = prices.chains[chain]
        if self._rows[chain] > 1:
            return own.row_s
        alone = sum([prices.segment_s[segment] for segment in own.segments if self._segments[segment] == 1])
        return own.row_s + own.set_up_s + alone

    @property
    def now_s(self) -> float:
        """A decode step with all that are under way."""
        if self._step_s is None:
            prices = self._prices
            self._step_s = prices.step_s + sum([prices.segment_s[segment] for segment in self._segments])
            for other, rows in self._rows.items():
                self._step_s += prices.chains[other].set_up_s + rows * prices.chains[other].row_s
        return self._step_s

    def holds(self, tokens: float) -> bool:
        """Whether a place and the cache are there for a request more, of so many tokens at its end."""
        needed = sum(self._tokens.values()) + tokens
        return len(self._chain_of) < self._prices.places and needed <= self._prices.cache_tokens

    @property
    def rows(self) -> int:
        """Of a step: requests that have a place."""
        return min(len(self._chain_of), self._prices.places)
