"""Live figures for the page at ``/ui``, as server-sent events: made once a second for all who look on.

In: an engine client and its metrics. Out: one route, for operators. An event has what the server has counted so far,
and of each app what changed since the listener's last event; who reads makes rates of it. Invariant: nothing is
computed while nobody listens; there are at most so many listeners; each ends when the server begins to end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from prometheus_client.metrics import MetricWrapperBase
from starlette.types import Receive, Scope, Send

from blockc_runtime.server import sse, ui
from blockc_runtime.server.engine_client import EngineClient
from blockc_runtime.server.errors import ApiError
from blockc_runtime.server.metrics import AppMetrics, EngineStats, Metrics

MOST_LISTENERS: Final = 16
EVERY_S: Final = 1.0
# A key that was taken out of the keys file opens nothing: browsers ask again after so long, and are checked again.
LONGEST_S: Final = 600.0
_WINDOW_S: Final = 60.0
_RETRY: Final = b"retry: 2000\n\n"
_END: Final = b"event: end\ndata: {}\n\n"

# tenant, app, running, waiting, tokens generated, ended, prompt tokens found in the cache and looked up, TTFT p50, p95
AppRow = tuple[str, str, int, int, int, int, int, int, float | None, float | None]


def install(app: FastAPI, feed: Feed) -> None:
    """Add the route. To be called after `ui.install`, whose sign-in browsers use for it."""

    @app.get(ui.EVENTS_PATH)
    async def events(request: Request) -> Response:
        ui.require_operator(request)
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise ApiError(403, "only the page of this server may listen", code="cross_site")
        feed.check_room()
        return _Events(feed)


class Feed:
    """What is counted, made into events for everybody at once. Lives on one event loop."""

    def __init__(self, client: EngineClient, metrics: Metrics, *, every_s: float = EVERY_S) -> None:
        self._client, self._metrics, self._every_s = client, metrics, every_s
        self._turn = asyncio.Condition()
        self._ticker: asyncio.Task[None] | None = None
        self._version = 0
        self._figures: dict[str, Any] = {}
        self._rows: dict[tuple[str, str], tuple[int, AppRow]] = {}  # with the version that changed them
        self.listeners = 0

    @property
    def is_ending(self) -> bool:
        """Whether listeners are to go."""
        return self._client.draining

    def check_room(self) -> None:
        """Raise 503 if too many listen already."""
        if self.listeners >= MOST_LISTENERS:
            message = f"{MOST_LISTENERS} pages are being sent figures already"
            raise ApiError(503, message, code="too_many_listeners", headers={"Retry-After": "5"})

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Count a listener: the first one starts the work, the last one ends it."""
        self.listeners += 1
        if self._ticker is None:
            self._ticker = asyncio.create_task(self._tick())
        try:
            yield
        finally:
            self.listeners -= 1
            if not self.listeners:
                self._ticker.cancel()
                self._ticker = None
                self._rows.clear()
                self._figures = {}  # whoever comes next sees nothing of before

    async def after(self, version: int) -> tuple[int, bytes]:
        """Wait for a version beyond this one; it and its event, empty once the server is ending."""
        async with self._turn:
            await self._turn.wait_for(lambda: self._version > version and (self._figures or self.is_ending))
        if self.is_ending:
            return self._version, b""
        rows = [row for changed, row in self._rows.values() if changed > version]
        return self._version, sse.event(sse.to_json({**self._figures, "apps": rows}))

    async def _tick(self) -> None:
        while True:
            stats = await self._client.stats_within()
            self._metrics.observe_stats(stats)
            now_s = time.monotonic()
            version = self._version + 1
            self._figures = self._counted(stats, now_s)
            for app in self._metrics.apps:
                row = _row(app, now_s)
                if (known := self._rows.get(row[:2])) is None or known[1] != row:
                    self._rows[row[:2]] = version, row
            async with self._turn:
                self._version = version
                self._turn.notify_all()
            await asyncio.sleep(self._every_s)

    def _counted(self, stats: Sequence[EngineStats], now_s: float) -> dict[str, Any]:
        totals = self._metrics.totals
        pages = [group for own in stats for group in own.stats.pages]
        return {
            "at": round(now_s, 3),
            "state": self._client.state.value,
            "steps": totals.steps,
            "rows": totals.rows,
            "chains": totals.chains,
            "launches": totals.launches,
            "pages": sum(group.total for group in pages),
            "held": sum(group.held for group in pages),
            "cached": sum(group.idle for group in pages),
            "evicted": sum(group.evicted for group in pages),
            "preemptions": sum(own.stats.counts.preemptions for own in stats),
            "side_loads": sum(own.stats.counts.side_loads for own in stats),
        }


class _Events(Response):
    """One listener, until it leaves, the server ends, or it is time to show the key again."""

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events."""
        with self._feed.listening():
            tasks = {asyncio.create_task(_left(receive)), asyncio.create_task(self._send(send))}
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        await send(sse.START)
        await send(sse.body(_RETRY, more=True))
        until_s = time.monotonic() + LONGEST_S
        version = 0
        while time.monotonic() < until_s:
            version, event = await self._feed.after(version)
            if not event:
                await send(sse.body(_END, more=False))
                return
            await send(sse.body(event, more=True))
        await send(sse.body(b"", more=False))


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _row(app: AppMetrics, now_s: float) -> AppRow:
    times = sorted(took_s for at_s, took_s in app.recent_ttft_s if at_s > now_s - _WINDOW_S)
    return (
        app.tenant,
        app.name,
        _value(app.running),
        _value(app.waiting),
        _value(app.generation_tokens),
        app.ended,
        _value(app.cache_hits),
        _value(app.cache_queries),
        _quantile(times, 0.5),
        _quantile(times, 0.95),
    )


def _value(child: MetricWrapperBase) -> int:
    """The number of a gauge or counter of one app."""
    (family,) = child.collect()
    return int(family.samples[0].value)


def _quantile(times: list[float], share: float) -> float | None:
    """The smallest that at least so many are not above."""
    return round(times[min(len(times) - 1, int(share * len(times)))], 4) if times else None
