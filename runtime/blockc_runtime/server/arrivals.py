"""What arrives for the requests of one HTTP call.

In: tokens and ends, from `EngineClient`. Out: lists of them, to the task that answers the call, or to what it has left
to take tokens where they arrive. Invariant: everything comes once and in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blockc_runtime.request import EndEvent, TokensEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """The end of a request that no engine could finish."""

    request: str
    message: str


Arrival = TokensEvent | EndEvent | Unavailable
Take = Callable[[list[Arrival]], bool]


class Call:
    """The requests of one HTTP call, and what has arrived for them since it was last asked."""

    __slots__ = ("_arrivals", "_take", "_waiter", "first_token_s", "requests", "started_s", "submitted_s", "unfinished")

    def __init__(self, requests: Sequence[str], submitted_s: float) -> None:
        self.requests = tuple(requests)
        self.submitted_s = submitted_s
        self.started_s: float | None = None  # the first row of any of its requests, by the step's results
        self.first_token_s: float | None = None
        self.unfinished = set(requests)
        self._arrivals: list[Arrival] = []
        self._waiter: asyncio.Future[None] | None = None
        self._take: Take | None = None

    async def arrived(self, take: Take | None = None) -> list[Arrival]:
        """Wait until there is something, and return all of it; empty once everything has ended.

        ``take`` is offered tokens where they arrive, which costs no turn of the loop. True: it took them, and the wait
        goes on. What it raises is raised here.
        """
        if not self._arrivals and self.unfinished:
            self._take = take
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        arrivals, self._arrivals = self._arrivals, []
        return arrivals

    def put(self, arrival: Arrival) -> None:
        """Add what has arrived for one of the requests."""
        self.add(arrival)
        self.wake()

    def add(self, arrival: Arrival) -> None:
        """Add what has arrived with more to come; `offer` follows."""
        self._arrivals.append(arrival)

    def offer(self) -> None:
        """Let a waiting reader have what was added."""
        if self._take is not None and self._waiter is not None and not self._waiter.done():
            try:
                if self._take(self._arrivals):
                    self._arrivals = []
                    if self.unfinished:
                        return
            except Exception as error:  # the reader's, not the engine's
                self._waiter.set_exception(error)
        self.wake()

    def wake(self) -> None:
        """Let a waiting reader look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
