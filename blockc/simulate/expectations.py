"""What a spec expects of its plan under load (`expect { slo_attainment = ... }`).

In: a spec, its plan, and reports of one fleet. Out: BC502 for each expectation that does not hold. With several
repetitions it has to hold on average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from blockc.diag import Diagnostics, Label
from blockc.ir.layout import format_bytes
from blockc.plan import ExecutionPlan
from blockc.render.units import counted
from blockc.simulate.report import AppReport, Report
from blockc.spec.deployment import Deployment, Expect

_SHOWN = 4


def check_expectations(
    deployment: Deployment, plan: ExecutionPlan, reports: Sequence[Report], *, diags: Diagnostics
) -> None:
    """Report what does not hold."""
    for expect in deployment.expect:
        if expect.memory_below_bytes is not None:
            _memory(expect.memory_below_bytes, expect, plan, diags)
        if expect.slo_attainment is not None:
            _attainment(float(expect.slo_attainment), expect, deployment, reports, diags)


def _memory(below_bytes: int, expect: Expect, plan: ExecutionPlan, diags: Diagnostics) -> None:
    """As `compile` judges it, of a plan that may be older than the spec."""
    for entry in plan.memory:
        taken_bytes = entry.used_bytes - entry.reserve_bytes
        if taken_bytes >= below_bytes:
            diags.report(
                "BC502",
                f"{plan.devices[entry.device].address} takes {format_bytes(taken_bytes)}, "
                f"expected less than {format_bytes(below_bytes)}",
                at=expect.span,
                help="compile the spec again: it would not have been written",
            )


def _attainment(
    wanted: float, expect: Expect, deployment: Deployment, reports: Sequence[Report], diags: Diagnostics
) -> None:
    measured = sum(report.total.measured for report in reports)
    if not measured:
        diags.report(
            "BC502",
            "no request has a target, so that none could be within it",
            at=expect.span,
            notes=_shed(reports[0]),
            help="give apps an `slo { ... }`, or `simulate` a load that reaches those that have one",
        )
        return
    found = sum(report.total.good for report in reports) / measured
    if found >= wanted:
        return
    late = sorted((app for app in _together(reports) if app[2] < wanted), key=lambda app: app[2])
    spans = {app.address: app.span for app in deployment.apps}
    diags.report(
        "BC502",
        f"{_percent(found)} of {counted(measured, 'request')} are within their targets, expected {100 * wanted:g} %",
        at=expect.span,
        secondary=tuple(
            Label(span=spans[address], text=f"{_percent(part)} of {count}")
            for address, count, part in late[:_SHOWN]
            if address in spans
        ),
        notes=(*_p95(reports[0].total), *_shed(reports[0])),
        help="more or faster devices, lower targets, or less load; `--chrome-trace` shows where the time goes",
    )


def _together(reports: Sequence[Report]) -> list[tuple[str, int, float]]:
    """Apps with targets: how many requests, and the part that was in time."""
    found = []
    for own in zip(*(report.apps for report in reports), strict=True):
        measured = sum(app.measured for app in own)
        if measured:
            found.append((own[0].address, measured, sum(app.good for app in own) / measured))
    return found


def _p95(total: AppReport) -> tuple[str, ...]:
    names = (("time to first token", total.ttft), ("time per token", total.tpot), ("time to last token", total.e2e))
    parts = [f"{name} {1000 * item.p95_s:.0f} ms" for name, item in names if item is not None]
    return (f"p95 of all requests: {', '.join(parts)}",) if parts else ()


def _shed(found: Report) -> tuple[str, ...]:
    """Whose load has no place in full, and whether what has none was judged."""
    if not found.shed:
        return ()
    parts = [f"{1 - item.served:.0%} of `{item.address}`" for item in found.shed[:_SHOWN]]
    if len(found.shed) > _SHOWN:
        parts.append(f"parts of {len(found.shed) - _SHOWN} more apps")
    if found.shed[0].requests is None:
        return (f"the plan has no place for {', '.join(parts)}, which was judged all the same: `--shed` leaves it out",)
    return (f"not judged, because the plan has no place for it: {', '.join(parts)} (`overload = shed`)",)


def _percent(part: float) -> str:
    """Rounded down: what is not all of them does not read so."""
    return f"{math.floor(1000 * part) / 10:.1f} %"
