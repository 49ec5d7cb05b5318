"""A plan as text: devices, what is shared by whom, paths of apps, KV, memory against not sharing.

In: a plan. Out: lines of at most ``width`` characters (40 at least). Invariant: pure; nothing that a terminal obeys
leaves it; with ``ascii_only`` nothing but ASCII does.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from blockc.plan import ExecutionPlan, MemoryEntry, PriceEntry, PriceRangeEntry, RolesEntry
from blockc.render.units import counted, format_bytes, printable

_BAR = 32
_NARROWEST = 40
_SHOWN_NAMES = 4
# A row of cells, one an app, is read at a glance up to here.
_MAX_CELLS = 40


def render_plan(plan: ExecutionPlan, *, width: int = 100, ascii_only: bool = False) -> str:
    """All sections."""
    sections = (
        _heading(plan),
        _devices(plan, ascii_only, min(_BAR, width // 3)),
        _segments(plan, ascii_only),
        _apps(plan),
        _kv(plan),
        _weights(plan, ascii_only, min(_BAR, width // 3)),
        _tenants(plan),
    )
    written = [section for section in map(tuple, sections) if section]
    lines = [part for section in written for line in (*section, "") for part in _fit(line, max(width, _NARROWEST))]
    text = "\n".join(lines[:-1]) + "\n"
    return text.encode("ascii", "backslashreplace").decode() if ascii_only else text


def price_text(price: PriceEntry) -> str:
    """What a plan costs, beside what other ways cost."""
    named = (("every model by itself", price.pm), ("adapters on shared bases", price.ps))
    others = [f"{name} {_range_text(other)}" for name, other in named if other is not None]
    return f"price: {price.per_hour:.6g} an hour" + (f"; {', '.join(others)}" if others else "")


def roles_text(plan: ExecutionPlan, roles: RolesEntry) -> str:
    """Who reads prompts for others and what that brings, or that it was tried."""
    compared = f"{roles.apart.in_time:.1%} of {counted(roles.requests, 'request')} in time, {roles.shared.in_time:.1%}"
    if not roles.readers:
        return f"roles: every instance reads the prompts that it answers; apart: {compared} so, by simulation"
    names = [plan.devices[device].address for item in roles.readers for device in plan.instances[item].devices]
    return f"roles: {_names(names)} read prompts for the others; by simulation {compared} if all did both"


def _range_text(price: PriceRangeEntry) -> str:
    if price.found is None:
        return f"at least {price.least:.6g}"
    return f"{price.found:.6g}" + (f" (at least {price.least:.6g})" if price.least < price.found else "")


def render_weights(plan: ExecutionPlan) -> list[str]:
    """The lines on weight bytes alone: PM, PS and ours, and what each tenant has of them."""
    return [*_weights(plan, True, _BAR), "", *_tenants(plan)]


def _fit(line: str, width: int) -> list[str]:
    """A line that is too long goes on below, further in."""
    if len(line) <= width:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(
        line.strip(),
        width,
        initial_indent=indent,
        subsequent_indent=indent + "    ",
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def _heading(plan: ExecutionPlan) -> Iterator[str]:
    yield (
        f"{counted(len(plan.apps), 'app')} on {counted(len(plan.chains), 'chain')}: "
        f"{counted(len(plan.blocks), 'block')} of {counted(len(plan.structures), 'structure')} "
        f"in {counted(len(plan.segments), 'segment')}"
    )
    solver = plan.solver
    gap = "proven optimal" if solver.gap == 0 else f"at most {100 * solver.gap:.1f} % from optimal"
    if plan.target == "sim":
        yield "made with --target sim: weights are assumed, nothing can serve it"
    bases = [(name, model.parameters) for name, model in plan.models.items() if model.kind == "base"]
    yield f"parameters: {_names([f'{name} {(count or 0) / 1e9:.3f} B' for name, count in bases])}"
    used = len({device for instance in plan.instances for device in instance.devices})
    yield f"placement: {max(1, used)} of {counted(len(plan.devices), 'device')}, {gap} ({solver.solver})"
    if plan.price is not None:
        yield price_text(plan.price)
    if plan.roles is not None:
        yield roles_text(plan, plan.roles)


def _devices(plan: ExecutionPlan, ascii_only: bool, bar_width: int) -> Iterator[str]:
    marks = _marks(ascii_only)
    legend = zip(marks, ("weights", "KV pages", "activations and reserve", "free"), strict=True)
    yield f"DEVICES  ({', '.join(f'{mark} {name}' for mark, name in legend)})"
    used = {device for instance in plan.instances for device in instance.devices}
    for memory in plan.memory:
        if memory.device not in used:
            continue
        device = plan.devices[memory.device]
        yield (
            f"  {printable(device.address)} ({device.kind})  {_bar(memory, ascii_only, bar_width)}  "
            f"{format_bytes(memory.used_bytes)} of {format_bytes(memory.capacity_bytes)}"
        )
        parts = [
            ("weights", memory.weights_bytes),
            *([("blocks that take turns", memory.blocks_bytes)] if memory.blocks_bytes else []),
            ("adapters", memory.sides_bytes),
            ("KV pages", memory.kv_bytes),
            ("activations", memory.workspace_bytes),
            ("reserve", memory.reserve_bytes),
        ]
        yield "    " + ", ".join(f"{name} {format_bytes(size)}" for name, size in parts)
        for instance in plan.instances:
            if (stage := instance.stage_of(memory.device)) is not None:
                place, stop = instance.stages.index(stage), stage.first + stage.count - 1
                yield f"    stage {place} of {len(instance.stages)}: blocks {stage.first} to {stop}"
            if memory.device in instance.devices and instance.side_slots:
                members = sum(plan.chains[chain].bank in instance.side_slots for chain in instance.chains)
                yield f"    adapters of {sum(instance.side_slots.values())} of {members} fine-tunes at a time"
            if memory.device in instance.devices and instance.turns:
                sizes = format_bytes(sum(turn.nbytes for turn in instance.turns))
                yield (
                    f"    blocks of {len(instance.turns)} segments take turns: {sizes} in "
                    f"{format_bytes(instance.room_bytes)}"
                )
    for index, device in enumerate(plan.devices):
        if index not in used:
            yield f"  {printable(device.address)} ({device.kind})  unused"


def _bar(memory: MemoryEntry, ascii_only: bool, width: int) -> str:
    """Weights and adapters, then KV, then the rest of what is used, then free."""
    marks = _marks(ascii_only)
    sizes = (
        memory.weights_bytes + memory.blocks_bytes + memory.sides_bytes,
        memory.kv_bytes,
        memory.workspace_bytes + memory.reserve_bytes,
    )
    scale = width / max(1, memory.capacity_bytes)
    bar = "".join(mark * round(size * scale) for mark, size in zip(marks, sizes, strict=False))
    return "[" + (bar + marks[3] * width)[:width] + "]"


def _marks(ascii_only: bool) -> str:
    return "#=-." if ascii_only else "█▓▒░"


def _segments(plan: ExecutionPlan, ascii_only: bool) -> Iterator[str]:
    yield "SEGMENTS  (launched once a step for the rows of all apps that pass)"
    mark, blank = ("#", ".") if ascii_only else ("■", "·")
    for index, segment in enumerate(plan.segments):
        passing = set(segment.chains)
        members = [app for app in plan.apps if app.chain in passing]
        blocks = plan.paths[segment.path].blocks[segment.first : segment.first + segment.count]
        tensors = {tensor for block in blocks for tensor in plan.blocks[block].tensors.values()}
        cells = "".join(mark if app.chain in passing else blank for app in plan.apps)
        cells = f"{cells}  " if len(cells) <= _MAX_CELLS else ""
        last = segment.first + segment.count - 1
        place = f"block {segment.first}" if segment.count == 1 else f"blocks {segment.first}-{last}"
        yield (
            f"  {index:>3}  {place:<13} {format_bytes(sum(t.nbytes for t in tensors)):>9}  {cells}"
            f"{_names([app.address for app in members], len(plan.apps))}"
        )


def _apps(plan: ExecutionPlan) -> Iterator[str]:
    yield "APPS"
    width = max((len(printable(app.address)) for app in plan.apps), default=0)
    for app in plan.apps:
        chain = plan.chains[app.chain]
        sides = f", adapters of rank {chain.side_rank}" if chain.side_rank else ""
        passed = " > ".join(map(str, chain.segments))
        shed = f", a place for {app.served:.0%} of its load" if app.served < 1 else ""
        yield f"  {printable(app.address):<{width}}  {_lineage(plan, app.model)}: segments {passed}{sides}{shed}"


def _lineage(plan: ExecutionPlan, model: str) -> str:
    names = [model]
    while (entry := plan.models.get(names[-1])) is not None and entry.parent is not None:
        names.append(entry.parent)
    return " : ".join(map(printable, names))


def _kv(plan: ExecutionPlan) -> Iterator[str]:
    yield "KV CACHE  (pages are shared only inside an isolation group, and only where domains are equal)"
    for index, group in enumerate(plan.kv_groups):
        pages = sum(instance.kv_pages.get(index, 0) for instance in plan.instances)
        window = "" if group.window is None else f", window {group.window}"
        last = group.first_layer + group.layers - 1
        layers = f"layer {group.first_layer}" if group.layers == 1 else f"layers {group.first_layer}-{last}"
        yield (
            f"  group {index}: {layers}{window}, {pages} pages of {group.page_tokens} tokens, "
            f"{format_bytes(pages * group.page_bytes)}"
        )
        for names in _sharing(plan, index):
            yield f"    shared by {_names(names)}"


def _sharing(plan: ExecutionPlan, group: int) -> list[list[str]]:
    """Apps that may read each other's pages in a group."""
    readers: dict[tuple[str, str], list[str]] = {}
    for app in plan.apps:
        for entry in plan.chains[app.chain].kv:
            if entry.group == group:
                readers.setdefault((entry.domain, app.isolation_group), []).append(app.address)
    return [names for names in readers.values() if len(names) > 1]


def _weights(plan: ExecutionPlan, ascii_only: bool, bar_width: int) -> Iterator[str]:
    yield "WEIGHTS"
    baselines = plan.baselines
    mark = "#" if ascii_only else "█"
    rows = [
        ("one model each (PM)", baselines.pm_bytes),
        ("LoRA on shared bases (PS)", baselines.ps_bytes),
        ("blocks (this plan)", baselines.ours_bytes),
    ]
    scale = bar_width / max(1, baselines.pm_bytes)
    for name, size in rows:
        yield f"  {name:<26} {format_bytes(size):>9}  {mark * max(1, round(size * scale))}"


def _tenants(plan: ExecutionPlan) -> Iterator[str]:
    """Nothing for plans that do not say it."""
    if not plan.tenants:
        return
    yield "TENANTS  (weights: alone as PM; private; shared with others, in full; fair share of this plan)"
    width = max(len(printable(entry.tenant)) for entry in plan.tenants)
    for entry in plan.tenants:
        yield (
            f"  {printable(entry.tenant):<{width}}  PM {format_bytes(entry.pm_bytes):>9}  "
            f"private {format_bytes(entry.private_bytes):>9}  shared {format_bytes(entry.shared_bytes):>9}  "
            f"fair share {format_bytes(entry.fair_bytes):>9}"
        )


def _names(names: Sequence[str], total: int | None = None) -> str:
    """``total``: how many there are of them; all of them need no naming."""
    if total is not None and len(names) == total > 1:
        return "all apps"
    if not names:
        return "no app"
    shown = ", ".join(printable(name) for name in names[:_SHOWN_NAMES])
    return shown if len(names) <= _SHOWN_NAMES else f"{shown} and {len(names) - _SHOWN_NAMES} more"
