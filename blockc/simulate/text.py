"""A report as text, and as plain data for ``--json``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from blockc.render.units import counted, format_bytes, printable
from blockc.simulate.report import AppReport, Latency, Report, Shed
from blockc.simulate.study import Estimate, FleetStudy


def render_report(report: Report) -> str:
    """A table of apps, a line for each instance, and what all of them did."""
    return "\n".join([*_head(report), "", *_apps(report), "", *_instances(report)]) + "\n"


def report_document(report: Report) -> dict[str, Any]:
    """All figures, with names as in `blockc.simulate.report`."""
    document = asdict(report)
    document["left_out"] = dict(report.left_out)
    document["routed"] = dict(report.routed)
    document["moved"] = dict(report.moved)
    for entry, app in zip((document["total"], *document["apps"]), (report.total, *report.apps), strict=True):
        entry["attainment"] = app.attainment
    return document


# Why requests moved, as it is said.
_REASONS = {
    "load": "to where they end sooner",
    "drain": "from an instance that was drained",
    "failure": "from one that failed",
    "read": "from where their prompt was read",
}


def _head(report: Report) -> Iterator[str]:
    total = report.total
    yield (
        f"SIMULATED  {report.label} on {counted(report.devices, 'device')}, "
        f"weights {format_bytes(report.weights_bytes)}; {printable(report.source)}"
    )
    yield (
        f"  {counted(total.requests, 'request')} in {report.horizon_s:.0f} s, the last answer after "
        f"{report.end_s:.0f} s; {report.output_tokens_per_s:.0f} output tokens/s; "
        f"fairness between tenants {report.jain:.3f}"
    )
    if total.attainment is not None:
        yield f"  {100 * total.attainment:.1f} % within their targets, {total.goodput_rps:.2f} of them a second"
    if total.cached_tokens:
        yield f"  {100 * total.cached_tokens / total.prompt_tokens:.1f} % of prompt tokens found in the cache"
    routed = dict(report.routed)
    if routed.keys() - {"fresh"}:
        yield (
            f"  {counted(routed.get('owner', 0), 'request')} went where their prompt's KV was, "
            f"{routed.get('transfer', 0)} were sent theirs ({format_bytes(total.sent_bytes - report.moved_bytes)}), "
            f"{routed.get('recompute', 0)} computed it again"
        )
    if report.moved:
        reasons = ", ".join(f"{count} {_REASONS[why]}" for why, count in report.moved)
        yield f"  moved while under way: {reasons}, with {format_bytes(report.moved_bytes)} of KV"
    if report.lost:
        yield f"  {counted(report.lost, 'request')} of an instance that failed, without another: refused"
    if total.refused > report.lost:
        refused = counted(total.refused - report.lost, "request")
        yield f"  {refused} longer than its model or the KV cache: refused"
    for reason, count in report.left_out:
        yield f"  {counted(count, 'request')} of the trace left out: {reason}"
    if report.shed:
        yield f"  {_shed(report.shed)}"


def _shed(apps: Sequence[Shed]) -> str:
    requests = [item.requests for item in apps if item.requests is not None]
    if requests:
        return f"{counted(sum(requests), 'request')} left out, for which the plan has no place (`overload = shed`)"
    return (
        f"the plan has no place for all load of {counted(len(apps), 'app')} (`overload = shed`), and all of it was "
        "run: `--shed` leaves out the rest"
    )


def _apps(report: Report) -> Iterator[str]:
    shed = {
        item.address: f"{item.requests} ({1 - item.served:.0%})" for item in report.shed if item.requests is not None
    }
    width = max(6, *(len(printable(app.address)) for app in report.apps))
    yield (
        f"{'APP':{width}}  {'requests':>8}  {'TTFT p50':>9} {'p95':>9} {'p99':>9}  {'TPOT p50':>9} {'p95':>9} "
        f"{'p99':>9}  {'end p50':>9} {'p95':>9} {'p99':>9}  {'in time':>7}" + ("  left out" if shed else "")
    )
    for app in (*report.apps, report.total):
        name = "all" if app.address == "*" else printable(app.address)
        left_out = f"  {shed[app.address]}" if app.address in shed else ""
        yield f"{name:{width}}  {app.requests:>8}  {_latencies(app)}  {_attained(app):>7}{left_out}"


def _latencies(app: AppReport) -> str:
    return "  ".join(_latency(item) for item in (app.ttft, app.tpot, app.e2e))


def _latency(item: Latency | None) -> str:
    if item is None:
        return " ".join(["-".rjust(9)] * 3)
    return " ".join(seconds(value).rjust(9) for value in (item.p50_s, item.p95_s, item.p99_s))


def _attained(app: AppReport) -> str:
    return "-" if app.attainment is None else f"{100 * app.attainment:.1f} %"


def _instances(report: Report) -> Iterator[str]:
    for item in report.instances:
        yield (
            f"INSTANCE {printable(item.name)}: busy {100 * item.busy:.1f} %, {item.mean_rows:.1f} rows a step, "
            f"{counted(item.steps, 'step')}, {item.tokens} tokens, {counted(item.preemptions, 'preemption')}"
            + (f", {counted(item.side_loads, 'fine-tune')} put in a slot" if item.side_loads else "")
            + (f", weights of {counted(item.block_loads, 'segment')} read" if item.block_loads else "")
            + (f", {item.stages} stages, {format_bytes(item.hop_bytes)} between them" if item.stages else "")
        )


def seconds(value: float) -> str:
    """Such as ``42.1 ms`` or ``3.20 s``."""
    return f"{1000 * value:.1f} ms" if value < 1 else f"{value:.2f} s"


def render_comparison(found: Sequence[FleetStudy]) -> str:
    """Several fleets under one load: a line for each, with half the width of 95 % intervals where there are any."""
    rows = [("", "devices", "weights", *(head for _, head, _ in _COLUMNS))]
    for item in found:
        first, figures = item.reports[0], item.figures
        cells = [_cell(figures.get(name), scale) for name, _, scale in _COLUMNS]
        rows.append((first.label, str(first.devices), format_bytes(first.weights_bytes), *cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(lines) + "\n"


# Figure, what stands above it, and whether it is in seconds.
_COLUMNS = (
    ("busy", "busy", "%"),
    ("ttft_p95_s", "TTFT p95", "s"),
    ("tpot_p95_s", "TPOT p95", "s"),
    ("e2e_p95_s", "end p95", "s"),
    ("output_tokens_per_s", "tokens/s", ""),
    ("attainment", "in time", "%"),
    ("jain", "fairness", "1"),
)


def _cell(figure: Estimate | None, unit: str) -> str:
    if figure is None:
        return "-"
    shown = _figure(figure.mean, unit)
    return shown if figure.half_width is None else f"{shown} +- {_figure(figure.half_width, unit)}"


def _figure(value: float, unit: str) -> str:
    if unit == "s":
        return seconds(value)
    if unit == "%":
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if unit == "1" else f"{value:.0f}"
