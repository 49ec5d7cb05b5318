"""Devices: a column for each, by node; memory by part; a cell for each block, stronger the more apps share it.

In: facts. Out: the section, and notes about devices, segments and blocks. A cell's key is ``b`` and the block's place
in the plan's table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from blockc.plan import MemoryEntry
from blockc.render.facts import LEVELS, Facts
from blockc.render.page.element import Markup, tag
from blockc.render.page.palette import family_class
from blockc.render.page.table import as_table, figure, section, table
from blockc.render.units import counted, format_bytes

PARTS = (
    ("weights", "weights"),
    ("sides", "adapters"),
    ("kv", "KV pages"),
    ("workspace", "activations"),
    ("reserve", "reserve"),
)
_COLUMNS = 4  # devices beside each other
_CELL, _PITCH, _ROW = 12, 14, 14  # pixels; pixels; cells
_WIDTH, _GAP = _PITCH * _ROW, 28
_TOP = 58  # pixels of a device's heading and bar


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cells:
    """What is drawn below a device's bar, in its column. ``blocks``: digest, left, top; ``names``: base, top."""

    blocks: tuple[tuple[str, int, int], ...]
    names: tuple[tuple[int, int], ...]
    height: int


def devices_section(facts: Facts) -> Markup:
    """The view."""
    plan = facts.plan
    memory = {entry.device: entry for entry in plan.memory}
    nodes = dict.fromkeys(device.node for device in plan.devices)
    pictures = [
        tag(
            "div",
            tag("h3", node),
            figure(node_picture(facts, [i for i, d in enumerate(plan.devices) if d.node == node], memory)),
            class_="node",
        )
        for node in nodes
    ]
    used = len(used_devices(facts))
    lead = (
        f"Weights are on {used} of {counted(len(plan.devices), 'device')}. A cell is a block; its colour says which "
        "base it belongs to, its strength how many apps share it. Each gap in the cells is the end of a segment."
    )
    if not plan.devices:
        return section("devices", "Devices", "The plan has no devices.")
    return section("devices", "Devices", lead, legend(facts), parts_legend(), pictures, as_table(_table(facts, memory)))


def used_devices(facts: Facts) -> list[int]:
    """Devices that an instance runs on."""
    return sorted({device for instance in facts.plan.instances for device in instance.devices})


def legend(facts: Facts) -> Markup:
    """Which colour is which base, and what its strengths mean."""
    entries = []
    for index, name in enumerate(facts.families):
        boxes = [
            tag("rect", x=level * 13, y=1, width=12, height=10, rx=2, class_=f"c {family_class(index)} s{level + 1}")
            for level in range(LEVELS)
        ]
        picture = tag("svg", boxes, width=LEVELS * 13, height=12, aria_hidden="true")
        entries.append(tag("li", picture, tag("span", name)))
    most = f"one app to {counted(facts.most_apps, 'app')}" if facts.most_apps > 1 else "one app"
    return tag("ul", entries, tag("li", f"weak to strong: {most}", class_="hint"), class_="legend")


def parts_legend() -> Markup:
    """Which tone is which part of memory."""
    entries = [
        tag(
            "li",
            tag(
                "svg",
                tag("rect", y=1, width=10, height=10, rx=2, class_=f"m-{key}"),
                width=10,
                height=12,
                aria_hidden="true",
            ),
            tag("span", name),
        )
        for key, name in PARTS
    ]
    return tag("ul", entries, class_="legend")


def node_picture(facts: Facts, devices: list[int], memory: Mapping[int, MemoryEntry]) -> Markup:
    """The devices of one node, a few beside each other, the rest below."""
    rows = [devices[start : start + _COLUMNS] for start in range(0, len(devices), _COLUMNS)]
    parts: list[Markup] = []
    top = 0
    for row in rows:
        drawn = [_device(facts, device, memory.get(device)) for device in row]
        for index, (markup, _) in enumerate(drawn):
            parts.append(tag("g", markup, transform=f"translate({index * (_WIDTH + _GAP)} {top})"))
        top += max(height for _, height in drawn) + _GAP
    width = max(map(len, rows)) * (_WIDTH + _GAP) - _GAP + 2
    height = top - _GAP + 2
    node = facts.plan.devices[devices[0]].node
    return tag(
        "svg",
        parts,
        class_="pick",
        width=width,
        height=height,
        viewBox=f"-1 -1 {width} {height}",
        role="group",
        aria_label=f"Devices of {node}",
    )


def _device(facts: Facts, device: int, memory: MemoryEntry | None) -> tuple[Markup, int]:
    entry = facts.plan.devices[device]
    cells = _cells(facts, device)
    name = entry.address.rpartition("/")[2]
    parts: list[Markup] = [
        tag("rect", x=-1, y=-1, width=_WIDTH, height=_TOP - 8, class_="hit", data_key=f"d{device}"),
        tag("text", name, x=0, y=12, class_="strong"),
        tag("text", entry.kind, x=_WIDTH - 2, y=12, class_="muted end"),
        tag("rect", x=0, y=20, width=_WIDTH - 2, height=10, rx=2, class_="free"),
    ]
    if not cells.blocks:
        parts.append(tag("text", f"unused, {format_bytes(entry.memory_bytes)}", x=0, y=45, class_="muted"))
        return Markup("".join(parts)), _TOP - 10
    if memory is not None:
        parts += list(_bar(memory))
        words = f"{format_bytes(memory.used_bytes)} of {format_bytes(memory.capacity_bytes)}"
        parts.append(tag("text", words, x=0, y=45, class_="muted"))
    for family, top in cells.names:
        parts.append(tag("text", facts.families[family] + _part(facts, device, family), x=0, y=top, class_="muted"))
    for block, left, top in cells.blocks:
        colour = family_class(facts.family_of_block[block])
        level = facts.level(len(facts.apps_of_block[block]))
        key = f"b{facts.number_of_block[block]}"
        box = {"x": left, "y": top, "width": _CELL, "height": _CELL, "rx": 2}
        parts.append(tag("rect", **box, class_=f"c {colour} s{level}", data_key=key))
    return Markup("".join(parts)), cells.height


def _bar(memory: MemoryEntry) -> Iterator[Markup]:
    left = 0.0
    for key, _ in PARTS:
        width = (_WIDTH - 2) * getattr(memory, f"{key}_bytes") / max(1, memory.capacity_bytes)
        if width > 0:
            yield tag("rect", x=round(left, 2), y=20, width=round(width, 2), height=10, class_=f"m-{key}")
        left += width


def _cells(facts: Facts, device: int) -> _Cells:
    """Base by base, segment by segment; a block is drawn once."""
    own = {s for instance in facts.plan.instances if device in instance.devices for s in instance.segments}
    order = sorted(own, key=lambda index: (facts.family_of_path[facts.plan.segments[index].path], index))
    blocks: list[tuple[str, int, int]] = []
    names: dict[int, int] = {}
    seen: set[str] = set()
    top = _TOP
    for index in order:
        entry = facts.plan.segments[index]
        run = facts.plan.paths[entry.path].blocks[entry.first : entry.first + entry.count]
        new = [block for block in dict.fromkeys(run) if block not in seen]
        seen |= set(new)
        family = facts.family_of_path[entry.path]
        if new and family not in names:
            names[family] = top + 13
            top += 20
        for place, block in enumerate(new):
            row, column = divmod(place, _ROW)
            blocks.append((block, column * _PITCH, top + row * _PITCH))
        if new:
            top += -(-len(new) // _ROW) * _PITCH + 4
    return _Cells(blocks=tuple(blocks), names=tuple(names.items()), height=top - 4)


def _part(facts: Facts, device: int, family: int) -> str:
    """Which part of every block lies here, where a cell of several devices holds them."""
    plan = facts.plan
    widths = {
        len(instance.devices)
        for instance in plan.instances
        if device in instance.devices
        and any(facts.family_of_path[plan.segments[s].path] == family for s in instance.segments)
    }
    return f", 1/{max(widths)} of each block" if max(widths, default=1) > 1 else ""


def _table(facts: Facts, memory: Mapping[int, MemoryEntry]) -> Markup:
    rows = []
    for index, device in enumerate(facts.plan.devices):
        entry = memory.get(index)
        chains = {chain for i in facts.plan.instances if index in i.devices for chain in i.chains}
        apps = sum(len(facts.apps_of_chain[chain]) for chain in chains)
        sizes = [format_bytes(getattr(entry, f"{key}_bytes")) if entry and chains else "" for key, _ in PARTS]
        used = format_bytes(entry.used_bytes) if entry and chains else "unused"
        blocks = len(_cells(facts, index).blocks)
        rows.append(
            [device.address, device.kind, str(apps), str(blocks), *sizes, used, format_bytes(device.memory_bytes)]
        )
    head = ["device", "kind", "apps", "blocks", *(name for _, name in PARTS), "used", "memory"]
    return table("Devices and their memory", head, rows, numbers=len(head) - 2)
