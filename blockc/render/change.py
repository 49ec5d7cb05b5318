"""What one plan changes against another: apps, blocks, bytes to load and to free, memory of devices.

In: facts of the new plan and of the old one. Out: plain data, rows of words, and the whole as text. Versions of models
and blocks are compared by digest: two names for the same content are no change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockc.render.facts import Facts
from blockc.render.units import counted, format_bytes, printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Digests of blocks that stay, come and go, and their bytes (of distinct tensors)."""

    kept: frozenset[str]
    added: frozenset[str]
    removed: frozenset[str]
    kept_bytes: int
    added_bytes: int
    removed_bytes: int


def change_of(new: Facts, old: Facts) -> Change:
    """What loading ``new`` in place of ``old`` takes. A tensor that another block had already is not loaded."""
    now, before = set(new.plan.blocks), set(old.plan.blocks)
    own, theirs = _tensors(new), _tensors(old)
    return Change(
        kept=frozenset(now & before),
        added=frozenset(now - before),
        removed=frozenset(before - now),
        kept_bytes=sum(size for name, size in own.items() if name in theirs),
        added_bytes=sum(size for name, size in own.items() if name not in theirs),
        removed_bytes=sum(size for name, size in theirs.items() if name not in own),
    )


def change_text(new: Facts, old: Facts) -> str:
    """All of it, for a terminal."""
    change = change_of(new, old)
    lines = [
        "BLOCKS",
        f"  = {counted(len(change.kept), 'block')} of {format_bytes(change.kept_bytes)} stay",
        f"  + {counted(len(change.added), 'block')} come, {format_bytes(change.added_bytes)} to load",
        f"  - {counted(len(change.removed), 'block')} go, {format_bytes(change.removed_bytes)} freed",
        "",
        "APPS",
        *(_aligned(app_changes(new, old)) or ["  no app changes"]),
        "",
        "DEVICES",
        *(_aligned(device_changes(new, old)) or ["  no device's memory changes"]),
    ]
    return "\n".join(lines) + "\n"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, map(printable, column))) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, map(printable, row), widths)).rstrip() for row in rows]


def app_changes(new: Facts, old: Facts) -> list[list[str]]:
    """A row for each change of an app: its address, what changes, before, now."""
    now = {app.address: app for app in new.plan.apps}
    before = {app.address: app for app in old.plan.apps}
    rows = []
    for name in dict.fromkeys([*now, *before]):
        if name not in before:
            rows.append([name, "added", "", now[name].model])
            continue
        if name not in now:
            rows.append([name, "removed", before[name].model, ""])
            continue
        one, two = before[name], now[name]
        versions = old.plan.chains[one.chain].digest[:12], new.plan.chains[two.chain].digest[:12]
        if versions[0] != versions[1]:
            rows.append([name, "another version", f"{one.model} ({versions[0]})", f"{two.model} ({versions[1]})"])
        places = old.place(one.chain), new.place(two.chain)
        if places[0] != places[1]:
            rows.append([name, "moved", *places])
    return rows


def device_changes(new: Facts, old: Facts) -> list[list[str]]:
    """A row for each device whose use changes: its address, bytes before, now, the difference."""
    now, before = _used(new), _used(old)
    rows = []
    for name in dict.fromkeys([*now, *before]):
        one, two = before.get(name), now.get(name)
        if one == two:
            continue
        change = (two or 0) - (one or 0)
        sign = "+" if change > 0 else "-" if change < 0 else ""
        words = ["not there" if size is None else format_bytes(size) for size in (one, two)]
        rows.append([name, *words, f"{sign}{format_bytes(abs(change))}"])
    return rows


def _used(facts: Facts) -> dict[str, int]:
    """Bytes used on each device; 0 where nothing runs."""
    used = {device for instance in facts.plan.instances for device in instance.devices}
    sizes = {entry.device: entry.used_bytes for entry in facts.plan.memory}
    return {
        device.address: sizes.get(index, 0) if index in used else 0 for index, device in enumerate(facts.plan.devices)
    }


def _tensors(facts: Facts) -> dict[str, int]:
    """Bytes of every tensor of the plan's blocks, by digest."""
    return {
        part.digest: part.nbytes
        for block in facts.plan.blocks.values()
        for tensor in block.tensors.values()
        for part in tensor.parts
    }
