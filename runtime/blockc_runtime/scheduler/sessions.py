"""Sessions that pause, for a tool or for a person to type: their pages are kept a while, though nobody holds them.

In: requests that end and say that more of their session will come, and the time. Out: pages that are evicted last.
Invariant: nothing is refused for the sake of what is kept; it goes when its time is over, when the session goes on, or
when pages are needed and nothing else is left.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from blockc_runtime.kv.index import KeptPages, KvIndex
from blockc_runtime.request import Request

# A session is its isolation group's: two tenants may call theirs alike.
_Key = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pause:
    until_s: float
    pages: KeptPages


class Sessions:
    """Those that pause."""

    def __init__(self, kv: KvIndex) -> None:
        self._kv = kv
        self._pauses: dict[_Key, _Pause] = {}
        self._ends: list[tuple[float, _Key]] = []  # a heap; what has been replaced is skipped when met

    def __len__(self) -> int:
        return len(self._pauses)

    def pause(self, request: Request, now_s: float) -> None:
        """``request``, which still has its pages, gives them back, to be kept as long as it says."""
        key = request.isolation_group, request.session
        self._end(key)
        until_s = now_s + request.keep_s
        self._pauses[key] = _Pause(until_s=until_s, pages=self._kv.pause(request.id))
        heapq.heappush(self._ends, (until_s, key))

    def resume(self, request: Request) -> None:
        """``request`` has started: what it found of its session's pages it holds, the others are as any."""
        if request.session:
            self._end((request.isolation_group, request.session))

    def expire(self, now_s: float) -> None:
        """End the pauses whose time is over."""
        while self._ends and self._ends[0][0] <= now_s:
            until_s, key = heapq.heappop(self._ends)
            pause = self._pauses.get(key)
            if pause is not None and pause.until_s == until_s:
                self._end(key)

    def end(self) -> None:
        """End all pauses: what they keep is as any other page."""
        for key in tuple(self._pauses):
            self._end(key)

    def forget(self) -> None:
        """The memory behind all pages was lost."""
        self._pauses.clear()
        self._ends.clear()

    def _end(self, key: _Key) -> None:
        pause = self._pauses.pop(key, None)
        if pause is not None:
            self._kv.let_go(pause.pages)
