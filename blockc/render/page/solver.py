"""Solver: what was minimised, how near to the bound it is, what is full, and what sharing saves.

In: facts. Out: the section. How the search got there is in plans that were placed by load.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockc.render.binding import TIGHT, Bound, bounds_of
from blockc.render.facts import Facts
from blockc.render.page.element import Child, Markup, tag
from blockc.render.page.table import MOST_ROWS, figure, section, table
from blockc.render.page.track import NAMES, TRACK, WIDTH
from blockc.render.text import price_text, roles_text
from blockc.render.units import counted, format_bytes

_ROW = 28
_NAME_CHARS = 16
_CLASS = {True: "bar-own", False: "bar-all"}


def solver_section(facts: Facts) -> Markup:
    """The view."""
    plan = facts.plan
    solver = plan.solver
    proven = "It is proven that none is better." if solver.gap == 0 else f"It is at most {solver.gap:.1%} from optimal."
    used = len({device for instance in plan.instances for device in instance.devices})
    needed = f"; at least {_number(solver.bound)} are needed" if solver.goal == "devices" else ""
    lead = f"The placement takes {max(1, used)} of {counted(len(plan.devices), 'device')}{needed}. {proven}"
    facts_list = [
        ("objective", ", then ".join(name.replace("_", " ") for name in solver.objective)),
        ("value", ", ".join(f"{value:.6g}" for value in solver.values or (solver.value,))),
        ("bound", _number(solver.bound)),
        ("gap", f"{solver.gap:.1%}"),
        ("status", solver.status),
        ("found by", solver.solver),
        ("seed", str(solver.seed)),
    ]
    if solver.history:
        facts_list.append(("bound proven by", solver.bound_kind))
    if plan.price is not None:
        facts_list.append(("price", price_text(plan.price).removeprefix("price: ")))
    if plan.roles is not None:
        facts_list.append(("roles", roles_text(plan, plan.roles).removeprefix("roles: ")))
    if solver.moved_bytes is not None:
        facts_list.append(("to load", format_bytes(solver.moved_bytes)))
    return section(
        "solver",
        "Solver",
        lead,
        figure(_gap(facts), "Bound and value"),
        tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts_list], class_="facts"),
        _search(facts),
        tag("h3", "What binds"),
        binding(facts),
        tag("h3", "What is scarce"),
        _scarce(facts),
        tag("h3", "What sharing saves"),
        figure(_weights(facts), "Bytes of weights"),
        _tenants(facts),
    )


def _search(facts: Facts) -> Markup | None:
    """What was known after each step of the search."""
    rows: list[list[Child]] = [
        [f"{step.units:.3g}", "none" if step.value is None else _number(step.value), _number(step.bound)]
        for step in facts.plan.solver.history
    ]
    if not rows:
        return None
    goal = facts.plan.solver.goal.replace("_", " ")
    head = ["deterministic time", f"{goal} of the plan", "at least"]
    return table("How the search came to it", head, rows, numbers=3)


def _gap(facts: Facts) -> Markup:
    """The bound, the value and all devices on one line."""
    plan = facts.plan
    rows = [("proven lower bound", plan.solver.bound, "bar-bound"), ("this plan", plan.solver.value, "bar-own")]
    total = max(plan.solver.value, 1e-9)
    if plan.solver.goal == "devices":
        total = float(max(1, len(plan.devices)))
        rows.append(("all devices", total, "bar-all"))
    return _bars([(name, value / total, _number(value), kind) for name, value, kind in rows], "Bound and value")


def _weights(facts: Facts) -> Markup:
    baselines = facts.plan.baselines
    rows = [
        ("one model each (PM)", baselines.pm_bytes, "bar-all"),
        ("LoRA on bases (PS)", baselines.ps_bytes, "bar-bound"),
        ("blocks (this plan)", baselines.ours_bytes, "bar-own"),
    ]
    most = max(1, *(size for _, size, _ in rows))
    return _bars([(name, size / most, format_bytes(size), kind) for name, size, kind in rows], "Bytes of weights")


def _bars(rows: Sequence[tuple[str, float, str, str]], label: str) -> Markup:
    """``rows``: name, share of the width, value in words, class. The words are the table of this picture."""
    parts: list[Markup] = []
    for index, (name, share, words, kind) in enumerate(rows):
        top = index * _ROW
        width = max(2.0, share * TRACK)
        parts += [
            tag("text", name, x=NAMES - 10, y=top + 18, class_="end"),
            tag("rect", x=NAMES, y=top + 6, width=round(width, 1), height=16, rx=3, class_=kind),
            tag("text", words, x=round(NAMES + width + 8, 1), y=top + 18, class_="muted"),
        ]
    width, height = WIDTH, len(rows) * _ROW
    words = "; ".join(f"{name} {value}" for name, _, value, _ in rows)
    return tag(
        "svg",
        parts,
        width=width,
        height=height,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=f"{label}: {words}",
    )


def binding(facts: Facts) -> list[Markup]:
    """What the plan has against what it may have, the tightest first; the tightest of each kind as a picture."""
    bounds = bounds_of(facts.plan)
    shown: dict[str, Bound] = {}
    for bound in bounds:
        if bound.share is not None:
            shown.setdefault(bound.kind, bound)
    bars = [
        (f"{kind}: {short_name(bound.line)}", min(1.0, bound.share), f"{bound.share:.0%}", _CLASS[bound.is_tight])
        for kind, bound in shown.items()
        if bound.share is not None
    ]
    rows: list[list[Child]] = [
        [bound.line, bound.kind, bound.has, bound.limit, bound.left, "tight" if bound.is_tight else ""]
        for bound in bounds[:MOST_ROWS]
    ]
    more = f"; {len(bounds) - MOST_ROWS} looser lines are not shown" if len(bounds) > MOST_ROWS else ""
    caption = f"Lines that the plan keeps to, the tightest first; tight: less than {1 - TIGHT:.0%} is left{more}"
    head = ["line", "kind", "has", "may have", "left", ""]
    return [
        *([figure(_bars(bars, "The tightest line of each kind"), "The tightest line of each kind")] if bars else []),
        table(caption, head, rows),
    ]


def short_name(line: str) -> str:
    """As much of a line as stands beside a bar."""
    return line if len(line) <= _NAME_CHARS else f"{line[: _NAME_CHARS - 1]}\u2026"


def _scarce(facts: Facts) -> Markup:
    """Devices from the tightest: what is left for KV pages beside everything else."""
    plan = facts.plan
    used = {device for instance in plan.instances for device in instance.devices}
    rows: list[tuple[float, list[Child]]] = []
    for entry in plan.memory:
        if entry.device in used:
            capacity = max(1, entry.capacity_bytes)
            fixed = (entry.used_bytes - entry.kv_bytes) / capacity
            row: list[Child] = [
                plan.devices[entry.device].address,
                f"{fixed:.0%}",
                format_bytes(entry.kv_bytes),
                f"{entry.used_bytes / capacity:.0%}",
            ]
            rows.append((-fixed, row))
    head = ["device", "all but KV pages", "KV pages", "used"]
    ordered = [row for _, row in sorted(rows, key=lambda item: item[0])]
    return table("KV pages get what the rest leaves; the tightest device first", head, ordered, numbers=3)


def _tenants(facts: Facts) -> Markup | None:
    tenants = facts.plan.tenants
    rows = [
        [
            entry.tenant,
            format_bytes(entry.pm_bytes),
            format_bytes(entry.private_bytes),
            format_bytes(entry.shared_bytes),
            format_bytes(entry.fair_bytes),
        ]
        for entry in tenants
    ]
    if not rows:
        return None
    head = ["tenant", "alone (PM)", "private", "shared with others", "fair share of this plan"]
    return table("Bytes of weights by tenant", head, rows, numbers=4)


def _number(value: float) -> str:
    return f"{value:g}"
