"""What schedulers have counted, those of plans that are gone included.

In: their gauges. Out: sums that only grow while an engine lives, for `messages.Stats`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from blockc_runtime.scheduler import Gauges
from blockc_runtime.wire.messages import Wait


@dataclass(slots=True)
class Counts:
    """See `scheduler.Gauges`."""

    preemptions: int = 0
    side_loads: int = 0
    block_loads: int = 0
    block_evictions: int = 0
    residency_wait_s: float = 0.0
    overlapped: int = 0
    waits: Counter[str] = field(default_factory=Counter)

    def add(self, gauges: Gauges) -> None:
        """Add what a scheduler has counted."""
        self.preemptions += gauges.preemptions
        self.side_loads += gauges.side_loads
        self.block_loads += gauges.block_loads
        self.block_evictions += gauges.block_evictions
        self.residency_wait_s += gauges.residency_wait_s
        self.overlapped += gauges.overlapped
        self.waits.update(gauges.waits)

    def with_(self, gauges: Iterable[Gauges]) -> Counts:
        """These, and what schedulers that go on have counted so far."""
        total = replace(self, waits=self.waits.copy())
        for each in gauges:
            total.add(each)
        return total

    def waits_by_reason(self) -> tuple[Wait, ...]:
        """Reasons that there were, in alphabetical order."""
        return tuple(Wait(reason=reason, count=count) for reason, count in sorted(self.waits.items()) if count)
