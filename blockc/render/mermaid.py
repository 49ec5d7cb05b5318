"""A plan as a Mermaid flowchart: apps, the segments that they pass, the devices that hold them.

In: a plan. Out: text for a Markdown file. Apps of one chain stand together. Invariant: names are quoted text; none of
them becomes an instruction of the diagram.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from blockc.plan import ExecutionPlan
from blockc.render.facts import Facts, facts_of, span_words
from blockc.render.units import counted, format_bytes, printable

_SHOWN = 6


def render_mermaid(plan: ExecutionPlan) -> str:
    """The whole chart."""
    facts = facts_of(plan)
    return "\n".join(["flowchart LR", *_apps(facts), *_segments(facts), *_devices(facts)]) + "\n"


def _apps(facts: Facts) -> Iterator[str]:
    for number, apps in enumerate(facts.apps_of_chain):
        if apps:
            names = [facts.plan.apps[app].address for app in apps]
            more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
            yield f"  c{number}([{_quoted(*names[:_SHOWN], *more)}])"


def _segments(facts: Facts) -> Iterator[str]:
    plan = facts.plan
    for number, segment in enumerate(plan.segments):
        blocks = span_words("block", segment.first, segment.first + segment.count - 1)
        apps = counted(len(facts.apps_of_segment(segment)), "app")
        size = format_bytes(facts.segment_bytes(segment))
        yield f"  s{number}[{_quoted(f'segment {number}', f'{blocks}, {size}', apps)}]"
    lines: dict[tuple[str, str], int] = {}
    for number, users in enumerate(facts.apps_of_chain):
        if users:
            stops = [f"c{number}", *(f"s{segment}" for segment in plan.chains[number].segments)]
            for edge in pairwise(stops):
                lines[edge] = lines.get(edge, 0) + len(users)
    for (start, end), count in lines.items():
        yield f"  {start} -->|{count}| {end}" if count > 1 else f"  {start} --> {end}"


def _devices(facts: Facts) -> Iterator[str]:
    plan = facts.plan
    used = sorted({device for instance in plan.instances for device in instance.devices})
    for node in dict.fromkeys(plan.devices[device].node for device in used):
        yield f"  subgraph n{plan.nodes.index(node)} [{_quoted(node)}]"
        for device in used:
            entry = plan.devices[device]
            if entry.node == node:
                yield f"    d{device}[({_quoted(entry.address, entry.kind)})]"
        yield "  end"
    held = {(segment, device) for i in plan.instances for segment in i.segments for device in i.devices}
    last = {segments[-1] for segments in (chain.segments for chain in plan.chains)}
    for segment, device in sorted(held):
        if segment in last:  # a chain lies wholly on one device or cell: its end shows where
            yield f"  s{segment} -.- d{device}"


def _quoted(*lines: str) -> str:
    """Lines as quoted text, in which everything but letters, digits and a few signs is a numbered entity."""
    shown = (map(_plain, printable(line)) for line in lines)
    return '"' + "<br>".join(map("".join, shown)) + '"'


def _plain(char: str) -> str:
    return char if char.isalnum() or char in " ./_-+," else f"#{ord(char)};"
