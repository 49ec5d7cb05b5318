"""Sessions that pause, for a tool or for a person to type: their pages are kept a while, though nobody holds them.

In: requests that end and say that more of their session will come, and the time. Out: pages that are evicted last.
Invariant: nothing is refused for the sake of what is kept; it goes when its time is over, when the session goes on, or
when pages are needed and nothing else is left.

They are an engine's, not a plan's: a session that paused under one plan goes on under the next, and what it keeps stays
kept as far as the next plan goes on in the same pages.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, replace

from blockc_runtime.kv.index import KeptPages
from blockc_runtime.kv.pages import Pages
from blockc_runtime.request import Request

# A session is its isolation group's: two tenants may call theirs alike.
_Key = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pause:
    until_s: float
    pages: KeptPages


class Sessions:
    """Those that pause. ``lost``: so many ended because all that they kept went with a plan, or with a worker."""

    def __init__(self) -> None:
        self.lost = 0
        self._pauses: dict[_Key, _Pause] = {}
        self._ends: list[tuple[float, _Key]] = []  # a heap; what has been replaced is skipped when met

    def __len__(self) -> int:
        return len(self._pauses)

    def pause(self, request: Request, kept: KeptPages, now_s: float) -> None:
        """``request`` has given its pages back, to be kept as long as it says."""
        key = request.isolation_group, request.session
        self._end(key)
        until_s = now_s + request.keep_s
        self._pauses[key] = _Pause(until_s=until_s, pages=kept)
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

    def end(self, gone: Iterable[Pages]) -> None:
        """Groups have gone: what pauses keep of them is kept no more, and who keeps nothing else pauses no more."""
        groups = set(map(id, gone))
        for key, pause in tuple(self._pauses.items()):
            left = tuple(kept for kept in pause.pages.pages if id(kept[0]) not in groups)
            if len(left) < len(pause.pages.pages):
                self._pauses[key] = _Pause(until_s=pause.until_s, pages=replace(pause.pages, pages=left))
                if not left:
                    del self._pauses[key]
                    self.lost += 1

    def _end(self, key: _Key) -> None:
        pause = self._pauses.pop(key, None)
        if pause is not None:
            pause.pages.let_go()
