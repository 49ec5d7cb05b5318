"""A step on its way through an executor: the rows that it is fed by, and what came of it.

In: a step, and the steps in flight when it was submitted. Out: its rows with the tokens that are due, and its results.
Invariant: a row is fed by the very row that its step names, or stays without its token and is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from blockc_runtime.step import Row, RowResult, Step


@dataclass(slots=True, kw_only=True, eq=False)
class Flight:
    """``step``: with its tokens, once it has been filled. ``feeds``: steps that feed its rows, by their numbers.

    ``run``: done when the step is, where it runs beside its caller.
    """

    step: Step
    feeds: dict[int, Flight] = field(default_factory=dict)
    results: tuple[RowResult, ...] = ()
    run: Future[None] | None = None

    @classmethod
    def of(cls, step: Step, in_flight: Iterable[Flight]) -> Flight:
        """A step that was submitted behind others."""
        numbers = {row.fed.step for row in step.rows if row.fed is not None}
        return cls(step=step, feeds={own.step.id: own for own in in_flight if own.step.id in numbers})

    def fill(self) -> None:
        """Put in the tokens that were drawn; the steps before it are done."""
        if self.feeds:
            self.step = replace(self.step, rows=tuple([self._filled(row) for row in self.step.rows]))
            self.feeds = {}

    def _filled(self, row: Row) -> Row:
        source = None if row.fed is None else self.feeds.get(row.fed.step)
        if row.fed is None or source is None or not source.results[row.fed.row].tokens:
            return row
        return row.filled(source.step.rows[row.fed.row], source.results[row.fed.row].tokens[-1])
