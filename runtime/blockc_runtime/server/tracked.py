"""One unfinished request, as the server keeps it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from blockc_runtime.request import FinishReason, Request
from blockc_runtime.server.arrivals import Call
from blockc_runtime.server.metrics import AppMetrics


@dataclass(slots=True, kw_only=True)
class Tracked:
    """``engine``: where it is, or waits to be. ``deaths``: engines that it outlived since its last token.

    ``is_read``: its engine has read its prompt, and whoever chose it knows.
    """

    request: Request
    engine: int
    tenant: str
    call: Call
    metrics: AppMetrics
    submitted_s: float
    emitted: list[int] = field(default_factory=list)
    first_token_s: float | None = None
    started: bool = False
    deaths: int = 0
    is_read: bool = False

    def observe_end(self, reason: FinishReason) -> None:
        """Count its end."""
        metrics, now_s = self.metrics, time.monotonic()
        (metrics.running if self.started else metrics.waiting).dec()
        metrics.finish(reason)
        metrics.e2e_s.observe(now_s - self.submitted_s)
        following = len(self.emitted) - 1
        if self.first_token_s is not None and following > 0:
            metrics.tpot_s.observe((now_s - self.first_token_s) / following)


def overdue(request: Request, emitted: Sequence[int]) -> FinishReason | None:
    """Return why a request should have ended after ``emitted``, if it should have."""
    if emitted[-1] in request.stop_token_ids:
        return "stop"
    return "length" if len(emitted) >= request.max_tokens else None
