"""A plan in service: its scheduler, its executor, and what of its requests is unfinished.

In: requests that name its number. Out: steps. Invariant: a request is in one epoch from its submission to its end; two
epochs have weights and KV pages in common and nothing else, so that no answer can mix plans.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from blockc.plan import ExecutionPlan
from blockc_runtime.grammar_gate import GrammarGate
from blockc_runtime.kv.index import KvIndex
from blockc_runtime.memory import MemoryUse
from blockc_runtime.request import Event, Request
from blockc_runtime.scheduler import Gauges
from blockc_runtime.scheduler.sessions import Sessions
from blockc_runtime.step import Executor, Step, StepResult
from blockc_runtime.turn import ReadingScheduler


class StepScheduler(ReadingScheduler, Protocol):
    """What the loop needs of `scheduler.Scheduler`."""

    @property
    def is_reading(self) -> bool:
        """Whether anything that requests wait for is being read."""

    @property
    def service(self) -> tuple[float, ...]:
        """What each tenant has been served."""

    @property
    def sessions(self) -> Sessions:
        """The engine's sessions that pause."""

    def gauges(self) -> Gauges:
        """What `Stats` tells."""

    def admit(self, request: Request, now_s: float) -> Sequence[Event]:
        """Queue a request; its end, if it can never run."""

    def complete(self, step: Step, result: StepResult, now_s: float) -> Sequence[Event]:
        """Take a step's results in."""

    def cancel(self, request: str, /, *, is_done: bool = False) -> Sequence[Event]:
        """Drop a request, whatever its state; nothing if it is unknown."""

    def give_way(self) -> None:
        """Give back the pages of all that runs, to be computed again later."""


@dataclass(slots=True, kw_only=True, eq=False)
class Epoch:
    """``plan`` and ``kv`` are those of an epoch that was loaded from a file; ``name`` of a chain, for the log.

    ``retires``: no more requests come. ``goes_first``: younger ones wait until its requests have ended. ``overlaps``: a
    step may be issued while the one before runs; ``flights``: those that have been issued and not collected.
    """

    number: int
    scheduler: StepScheduler
    executor: Executor
    plan: ExecutionPlan | None = None
    kv: KvIndex | None = None
    memory: Callable[[], MemoryUse | None] = lambda: None
    name: Callable[[int], str] = "chain {}".format
    unfinished: set[str] = field(default_factory=set)
    retires: bool = False
    goes_first: bool = False
    overlaps: bool = False
    flights: deque[Step] = field(default_factory=deque)
    gate: GrammarGate = field(init=False)

    def __post_init__(self) -> None:
        self.gate = GrammarGate(self.executor.index)

    @property
    def is_over(self) -> bool:
        """Whether no more requests come, and none is left."""
        return self.retires and not self.unfinished and not self.flights

    def chains_through(self, segment: int) -> Sequence[int]:
        """Chains that pass a segment, as far as a plan says."""
        return () if self.plan is None else self.plan.segments[segment].chains

    def is_in_flight(self, request: str) -> bool:
        """Whether a step has a row of a request, which may have ended since."""
        return any(row.request == request for step in self.flights for row in step.rows)

    def is_blocked(self, *, worked: bool) -> bool:
        """Whether it has work and could not make a step of it, for lack of pages that another plan's requests hold."""
        return not worked and len(self.unfinished) > len(self.gate) and not self.scheduler.is_reading

    def close(self, others: Iterable[Epoch] = ()) -> None:
        """Free what it has alone. Sessions keep what is in pages that ``others`` go on in, too."""
        if self.kv is not None:
            there = {id(pages) for other in others if other.kv is not None for pages in other.kv.groups}
            self.scheduler.sessions.end(pages for pages in self.kv.groups if id(pages) not in there)
        self.executor.close()
