"""Quotas: how many requests and tokens a tenant may use in a minute.

In: what a call may use at most, then what it used; the time as an argument. Out: a `Reservation`, or why it is too much
and when it will not be. Invariant: in any span of T minutes a tenant uses at most ``(1 + T)`` times its quota, and what
a single call may use beyond that; a call that is refused costs nothing.

A bucket holds a minute's worth and fills steadily. A call reserves its prompt and all tokens it may get, and gives back
what it did not use when it ends. One that may use more than a bucket holds waits for a full one, and leaves a debt.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Of one tenant. None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def over(self, default: Quota) -> Quota:
        """Return it with what it does not say as ``default`` says it."""
        requests, tokens = self.requests_per_minute, self.tokens_per_minute
        return Quota(
            requests_per_minute=default.requests_per_minute if requests is None else requests,
            tokens_per_minute=default.tokens_per_minute if tokens is None else tokens,
        )


class QuotaExceededError(Exception):
    """``what``: ``requests`` or ``tokens``."""

    def __init__(self, what: str, limit: int, retry_after_s: float) -> None:
        super().__init__(f"{limit} {what} a minute")
        self.what = what
        self.limit = limit
        self.retry_after_s = max(1, math.ceil(retry_after_s))


@dataclass(slots=True)
class _Bucket:
    """``level``: what may be used now; negative: a debt. It is full before its first use."""

    level: float = math.inf
    at_s: float = 0.0

    def fill(self, limit: int, now_s: float) -> None:
        self.level = min(float(limit), self.level + limit * (now_s - self.at_s) / _MINUTE_S)
        self.at_s = now_s

    def lacks_s(self, amount: int, limit: int) -> float:
        """How long until ``amount`` may be used."""
        return (min(amount, limit) - self.level) * _MINUTE_S / limit


@dataclass(slots=True, kw_only=True)
class Reservation:
    """What a call may use. Settled once, whatever becomes of the call."""

    tokens: int = 0
    give_back: Callable[[int, int], None] = lambda requests, tokens: None
    is_open: bool = True

    def settle(self, used_tokens: int) -> None:
        """Give back what was not used."""
        if self.is_open:
            self.is_open = False
            self.give_back(0, self.tokens - used_tokens)

    def undo(self) -> None:
        """Give back everything: the call was not taken on."""
        if self.is_open:
            self.is_open = False
            self.give_back(1, self.tokens)


@dataclass(slots=True)
class _Use:
    requests: _Bucket = field(default_factory=_Bucket)
    tokens: _Bucket = field(default_factory=_Bucket)


class Quotas:
    """The use of all tenants. Limits may change at any time; what was used stays used."""

    def __init__(self, quota_of: Callable[[str], Quota], clock: Callable[[], float] = time.monotonic) -> None:
        self._quota_of = quota_of
        self._clock = clock
        self._uses: dict[str, _Use] = {}

    def check(self, tenant: str | None) -> None:
        """Raise `QuotaExceededError` for a call that could not be taken on, whatever it asks for."""
        self._require(tenant, requests=1, tokens=1)

    def reserve(self, tenant: str | None, tokens: int) -> Reservation:
        """Reserve a request and so many tokens. ``tenant`` None: the operator, without limits."""
        self._require(tenant, requests=1, tokens=tokens)
        if tenant is None:
            return Reservation()
        use = self._uses.setdefault(tenant, _Use())
        use.requests.level -= 1
        use.tokens.level -= tokens

        def give_back(requests: int, rest: int) -> None:
            use.requests.level += requests
            use.tokens.level += rest

        return Reservation(tokens=tokens, give_back=give_back)

    def _require(self, tenant: str | None, *, requests: int, tokens: int) -> None:
        if tenant is None:
            return
        quota, use, now_s = self._quota_of(tenant), self._uses.setdefault(tenant, _Use()), self._clock()
        for what, bucket, limit, amount in (
            ("requests", use.requests, quota.requests_per_minute, requests),
            ("tokens", use.tokens, quota.tokens_per_minute, tokens),
        ):
            if limit is None:
                bucket.level = math.inf  # a limit that comes later finds a full bucket
                continue
            bucket.fill(limit, now_s)
            if (wait_s := bucket.lacks_s(amount, limit)) > 0:
                raise QuotaExceededError(what, limit, wait_s)
