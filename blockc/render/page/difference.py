"""Diff: what one plan changes against another: apps, blocks, bytes to load and to free, memory of devices.

In: facts of this plan and of the older one. Out: the section.
"""

from __future__ import annotations

from blockc.render.change import Change, app_changes, change_of, device_changes
from blockc.render.facts import Facts
from blockc.render.page.element import Child, Markup, tag
from blockc.render.page.table import figure, section, table
from blockc.render.page.track import NAMES, TRACK, WIDTH
from blockc.render.units import counted, format_bytes


def difference_section(new: Facts, old: Facts) -> Markup:
    """The view."""
    change = change_of(new, old)
    apps = app_changes(new, old)
    memory = device_changes(new, old)
    if not (change.added or change.removed or apps or memory):
        same = "Both plans have the same apps, blocks and devices."
        return section("diff", "Diff", same, tag("p", "Nothing changes.", class_="empty"))
    lead = (
        f"Against the plan before: {counted(len(change.kept), 'block')} stay, {len(change.added)} come, "
        f"{len(change.removed)} go. {format_bytes(change.added_bytes)} of weights are to be loaded, "
        f"{format_bytes(change.removed_bytes)} are freed; the rest need not move."
    )
    content: list[Child] = [figure(_picture(change), "Blocks that stay, come and go")]
    content.append(
        table("Apps that change", ["app", "what", "before", "now"], apps) if apps else _none("No app changes.")
    )
    if memory:
        content.append(table("Devices that change", ["device", "before", "now", "change"], memory, numbers=3))
    else:
        content.append(_none("No device's memory changes."))
    return section("diff", "Diff", lead, *content)


def _none(words: str) -> Markup:
    return tag("p", words, class_="empty")


def _picture(change: Change) -> Markup:
    rows = [
        ("stay", change.kept, change.kept_bytes, "bar-bound", "="),
        ("come", change.added, change.added_bytes, "bar-own", "+"),
        ("go", change.removed, change.removed_bytes, "bar-gone", "-"),
    ]
    most = max(1, *(size for _, _, size, _, _ in rows))
    parts: list[Markup] = []
    said = []
    for index, (name, blocks, size, kind, sign) in enumerate(rows):
        top, width = index * 28, max(2.0, size / most * TRACK) if blocks else 0.0
        words = f"{counted(len(blocks), 'block')}, {format_bytes(size)}"
        said.append(f"{words} {name}")
        parts += [
            tag("text", f"{sign} {name}", x=NAMES - 10, y=top + 18, class_="end"),
            tag("rect", x=NAMES, y=top + 6, width=round(width, 1), height=16, rx=3, class_=kind),
            tag("text", words, x=round(NAMES + width + 8, 1), y=top + 18, class_="muted"),
        ]
    return tag(
        "svg",
        parts,
        width=WIDTH,
        height=len(rows) * 28,
        viewBox=f"0 0 {WIDTH} {len(rows) * 28}",
        role="img",
        aria_label="; ".join(said),
    )
