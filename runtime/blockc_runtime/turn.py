"""What comes next: the scheduler's step, with the reading of fine-tunes kept going beside it.

Whoever drives a scheduler and an executor calls this in each turn, so that a plan whose fine-tunes take turns in memory
needs nothing of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from blockc_runtime.request import Event
from blockc_runtime.step import Executor, SegmentTurn, Step


class ReadingScheduler(Protocol):
    """What `next_step` needs of `scheduler.Scheduler`."""

    def arrived(self, chain: int, problem: str | None) -> Sequence[Event]:
        """The sides of a chain have been read, or cannot be."""

    def brought(self, segment: int, problem: str | None) -> Sequence[Event]:
        """The weights of a segment have been read, or cannot be."""

    def schedule(self, now_s: float) -> Step | None:
        """Choose the rows of the next step; None if nothing can run."""

    def take_wanted(self) -> Sequence[int]:
        """Chains whose sides should be read."""

    def take_turns(self) -> Sequence[SegmentTurn]:
        """Segments whose weights should be read, and those that go for them."""


def next_step(
    scheduler: ReadingScheduler,
    executor: Executor,
    now_s: float,
    *,
    on_problem: Callable[[int, str], None] = lambda chain, problem: None,
    on_segment_problem: Callable[[int, str], None] = lambda segment, problem: None,
) -> tuple[list[Event], Step | None]:
    """Tell the scheduler what has been read, ask for a step, and have read what it wants.

    The events are those of requests whose fine-tune cannot be read. None: nothing can run now; that may be because
    something is still being read.
    """
    events: list[Event] = []
    for chain, problem in executor.prefetched():
        if problem is not None:
            on_problem(chain, problem)
        events += scheduler.arrived(chain, problem)
    for segment, problem in executor.brought():
        if problem is not None:
            on_segment_problem(segment, problem)
        events += scheduler.brought(segment, problem)
    step = scheduler.schedule(now_s)
    for turn in scheduler.take_turns():
        executor.bring(turn)
    for chain in scheduler.take_wanted():
        executor.prefetch(chain)
    return events, step
