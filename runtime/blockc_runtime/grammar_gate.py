"""Requests with a grammar wait before the scheduler until their tokenizer's vocabulary is indexed; nobody else does.

In: requests as they come. Out: those that may be admitted, in their order, with the time at which they came.
"""

from __future__ import annotations

from collections.abc import Callable

from blockc_runtime.request import Request


class GrammarGate:
    """``index``: begins to index a chain's vocabulary, and says whether that is done."""

    def __init__(self, index: Callable[[int], bool]) -> None:
        self._index = index
        self._waiting: dict[str, tuple[Request, float]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def holds(self, request: Request, now_s: float) -> bool:
        """Whether a request has to wait; it is kept then."""
        steering = request.sampling.steering
        if steering is None or steering.grammar is None or self._index(request.chain):
            return False
        self._waiting[request.id] = request, now_s
        return True

    def opened(self) -> list[tuple[Request, float]]:
        """Those that need not wait any longer, with the times at which they came."""
        ready = [item for item in self._waiting.values() if self._index(item[0].chain)]
        for request, _ in ready:
            del self._waiting[request.id]
        return ready

    def cancel(self, request: str) -> bool:
        """Forget a request; whether it was waiting here."""
        return self._waiting.pop(request, None) is not None
