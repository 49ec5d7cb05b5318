"""From a trace to a workload: who asks for which app.

In: a trace and the apps of a plan. Out: arrivals. Where a trace names no app, one is drawn by a seeded power law: app k
in the plan's order has the weight ``(k + 1) ** -skew``. Requests whose prompts begin alike have one app, or nothing of
them could be found again: that of the second block, for the first one is often a system prompt that everybody has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blockc.diag import DiagnosticError, Diagnostics
from blockc.simulate.traces.read import Trace
from blockc.simulate.traces.row import Lines, TraceRow
from blockc.simulate.workload import Arrival, Workload, opening


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How apps are drawn. ``skew`` 0: all alike."""

    skew: float = 1.0
    seed: int = 0

    def draw(self, apps: int, count: int) -> list[int]:
        """The apps of ``count`` requests."""
        weights = (1.0 + np.arange(apps)) ** -self.skew
        drawn = np.random.default_rng([self.seed, 1]).choice(apps, size=count, p=weights / weights.sum())
        return [int(item) for item in drawn]


def workload_of(trace: Trace, apps: Sequence[str], spread: Spread, *, diags: Diagnostics) -> Workload:
    """Give each request an app. Raises `DiagnosticError` (BC101) where the trace names one that the plan lacks."""
    index = {address: number for number, address in enumerate(apps)}
    lines = Lines(file=trace.file, diags=diags)
    drawn = spread.draw(len(apps), len(trace.rows))
    by_block: dict[int, int] = {}
    arrivals = []
    for row, own in zip(trace.rows, drawn, strict=True):
        app = own
        if row.app is not None:
            named = index.get(row.app)
            if named is None:
                lines.report(
                    row.line, "", f"the plan has no app `{_printable(row.app)}`", code="BC101", help_=_help(apps)
                )
                continue
            app = named
        elif row.blocks:
            app = by_block.setdefault(opening(row.blocks), own)
        arrivals.append(_arrival(row, app))
    if lines.wrong:
        lines.close()
        raise DiagnosticError(diags)
    return Workload(arrivals=tuple(arrivals), source=f"{trace.file} ({trace.format})", left_out=trace.left_out)


def _arrival(row: TraceRow, app: int) -> Arrival:
    return Arrival(
        at_s=row.at_s,
        app=app,
        prompt_tokens=row.prompt_tokens,
        output_tokens=row.output_tokens,
        blocks=row.blocks,
    )


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:60])


def _help(apps: Sequence[str]) -> str:
    some = ", ".join(f"`{address}`" for address in apps[:5])
    return f"the plan has {some}{' and more' if len(apps) > 5 else ''}; without `app` requests are spread over all"
