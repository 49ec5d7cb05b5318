"""The devices as one SVG file, with its colours inside: for documents and reviews.

In: a plan. Out: SVG text. The same plan gives the same bytes.
"""

from __future__ import annotations

from blockc.plan import ExecutionPlan
from blockc.render.facts import Facts, facts_of
from blockc.render.page.devices import node_picture
from blockc.render.page.element import Markup, tag
from blockc.render.page.palette import colours_css
from blockc.render.units import counted, format_bytes

_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#10151c}.strong{font-weight:600}.muted{fill:#5a6472}.end{text-anchor:end}"
    ".free{fill:#eef1f4}.hit{fill:none}.c{stroke-width:1}h3{fill:#10151c}"
)
_MARGIN = 24


def render_svg(plan: ExecutionPlan) -> str:
    """Nodes below each other."""
    facts = facts_of(plan)
    memory = {entry.device: entry for entry in plan.memory}
    parts: list[Markup] = []
    top, width = _MARGIN + 24, 480
    for node in dict.fromkeys(device.node for device in plan.devices):
        devices = [index for index, device in enumerate(plan.devices) if device.node == node]
        picture = node_picture(facts, devices, memory)
        own_width, height = _size(picture)
        parts.append(tag("text", node, x=_MARGIN, y=top + 12, class_="strong"))
        parts.append(tag("g", picture, transform=f"translate({_MARGIN} {top + 24})"))
        top += height + 48
        width = max(width, own_width + 2 * _MARGIN)
    return (
        tag(
            "svg",
            tag("style", Markup(_STYLE + colours_css(both=False))),
            tag("rect", width=width, height=top, fill="#fff"),
            tag("text", _summary(facts), x=_MARGIN, y=_MARGIN + 4, class_="muted"),
            parts,
            xmlns="http://www.w3.org/2000/svg",
            width=width,
            height=top,
            viewBox=f"0 0 {width} {top}",
            role="img",
            aria_label=_summary(facts),
        )
        + "\n"
    )


def _summary(facts: Facts) -> str:
    plan = facts.plan
    return (
        f"{counted(len(plan.apps), 'app')}, {counted(len(plan.blocks), 'block')}, "
        f"{format_bytes(plan.baselines.ours_bytes)} of weights, "
        f"{format_bytes(plan.baselines.pm_bytes)} as one model each"
    )


def _size(picture: Markup) -> tuple[int, int]:
    """Width and height, as the picture itself says."""
    head = picture[: picture.index(">")]
    return int(head.split('width="')[1].split('"')[0]), int(head.split('height="')[1].split('"')[0])
