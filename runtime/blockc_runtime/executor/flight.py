"""A step on its way through an executor: the rows that it is fed by, and what came of it.

In: a step, and the steps in flight when it was submitted. Out: its rows with the tokens that are due, and its results.
Invariant: a row is fed by the very row that its step names, or stays without its token and is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from blockc_runtime.executor.batch import DeviceFeed
from blockc_runtime.executor.launch import StepRun
from blockc_runtime.step import Launched, Row, RowResult, Step


@dataclass(slots=True, kw_only=True, eq=False)
class Flight:
    """``step``: with its tokens, once it has been filled, as far as the host knows them.

    ``sources``: steps that feed its rows, by their numbers. ``run``: from its launch to when it is settled. ``future``:
    done when the step is, where it runs beside its caller.
    """

    step: Step
    sources: dict[int, Flight] = field(default_factory=dict)
    run: StepRun | None = None
    results: tuple[RowResult, ...] = ()
    future: Future[None] | None = None
    launched: Launched = field(default_factory=Launched)

    @classmethod
    def of(cls, step: Step, in_flight: Iterable[Flight]) -> Flight:
        """A step that was submitted behind others."""
        numbers = {row.fed.step for row in step.rows if row.fed is not None}
        return cls(step=step, sources={own.step.id: own for own in in_flight if own.step.id in numbers})

    def fill(self) -> dict[int, DeviceFeed]:
        """Put in the tokens that were drawn, of which those are returned that only the device knows."""
        feeds: dict[int, DeviceFeed] = {}
        if self.sources:
            rows = [self._filled(index, row, feeds) for index, row in enumerate(self.step.rows)]
            self.step = replace(self.step, rows=tuple(rows))
            self.sources = {}
        return feeds

    def _filled(self, index: int, row: Row, feeds: dict[int, DeviceFeed]) -> Row:
        source = None if row.fed is None else self.sources.get(row.fed.step)
        if row.fed is None or source is None:
            return row
        if source.run is not None:
            if (feed := source.run.feed_of(row.fed.row)) is not None:
                feeds[index] = feed
            return row
        drawn = source.results[row.fed.row].tokens
        return row.filled(source.step.rows[row.fed.row], drawn[-1]) if drawn else row
