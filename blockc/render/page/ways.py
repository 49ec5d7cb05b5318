"""Times of chains: what a prompt takes to its first token, and a token behind it, hop by hop, beside the app's target.

In: facts, and the rows of the chains' view. Out: a part of that view, and notes by ``h`` and the first app of a row.
Times are of a request by itself on idle devices: what there is to gain or lose before any queue.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from blockc.render.facts import Facts, span_words
from blockc.render.hops import Cost, Way, Ways
from blockc.render.page.element import Child, Markup, tag
from blockc.render.page.palette import family_class
from blockc.render.page.table import Note, as_table, figure, listed, table
from blockc.render.page.track import BOX, NAMES, ROW, TRACK, WIDTH, clipped, drawing
from blockc.render.units import counted, format_bytes, format_s

Lane = tuple[int, ...]
# What is no hop's: its name, and the tone of the legend of devices.
_REST = (("fine-tune's own", "m-sides"), ("attention", "m-kv"), ("each step", "m-workspace"))

_TOP = 4  # pixels above the first row


def ways_part(facts: Facts, ways: Ways, families: Sequence[Sequence[Lane]]) -> Child:
    """Below the chains. Nothing where no device's rates are known, but a word of why."""
    lanes = [lane for own in families for lane in own]
    heading = tag("h3", "Time on the way")
    lead = [
        f"Of a request by itself: a prompt of {counted(ways.prompt_tokens, 'token')} until its first token, and one "
        f"token behind it, by {ways.source}.",
    ]
    if ways.unknown:
        lead.append(f"Nothing is known of how fast {listed(ways.unknown)} is: `blockc profile` measures it.")
    lead_markup = tag("p", " ".join(lead), class_="lead")
    known = [lane for lane in lanes if _way(facts, ways, lane) is not None]
    if not known:
        return [heading, lead_markup]
    order = sorted(known, key=lambda lane: (-_prompt_s(facts, ways, lane), lane))
    return [heading, lead_markup, _legend(), figure(_picture(facts, ways, order)), as_table(_table(facts, ways, order))]


def way_notes(facts: Facts, ways: Ways, lanes: Sequence[Lane]) -> Iterator[tuple[str, Note]]:
    """A note for each row that has times."""
    for lane in lanes:
        way = _way(facts, ways, lane)
        if way is None:
            continue
        rows = [("first token", f"after {format_s(way.prompt_s)}{_beside_target(facts, ways, lane)}")]
        rows.append(("a token", f"{format_s(way.token_s)}, for which {format_bytes(way.read_bytes)} are read"))
        for name, _, cost in _parts(facts, way):
            if cost.prompt_s or cost.read_bytes:
                rows.append((name, f"{format_s(cost.token_s)} a token, {format_s(cost.prompt_s)} of the prompt"))
        yield f"h{lane[0]}", (f"Time of {_name(facts, lane)}", rows)


def _way(facts: Facts, ways: Ways, lane: Lane) -> Way | None:
    return ways.by_chain.get(facts.plan.apps[lane[0]].chain)


def _prompt_s(facts: Facts, ways: Ways, lane: Lane) -> float:
    way = _way(facts, ways, lane)
    return 0.0 if way is None else way.prompt_s


def _name(facts: Facts, lane: Lane) -> str:
    return facts.plan.apps[lane[0]].address if len(lane) == 1 else counted(len(lane), "app")


def _target_s(facts: Facts, lane: Lane) -> float | None:
    """The tightest of the row's apps."""
    targets = [own for app in lane if (own := facts.plan.apps[app].ttft_s) is not None]
    return min(targets, default=None)


def _beside_target(facts: Facts, ways: Ways, lane: Lane) -> str:
    target_s = _target_s(facts, lane)
    if target_s is None:
        return ""
    over = _prompt_s(facts, ways, lane) > target_s
    return f", {'over' if over else 'within'} the target of {format_s(target_s)}"


def _parts(facts: Facts, way: Way) -> Iterator[tuple[str, str, Cost]]:
    """Name, class and cost of each hop and of the rest."""
    for hop in way.hops:
        entry = facts.plan.segments[hop.segment]
        level = facts.level(len(facts.apps_of_segment(entry)))
        colour = family_class(facts.family_of_path[entry.path])
        span = span_words("block", hop.first, hop.first + hop.count - 1)
        yield f"segment {hop.segment} ({span})", f"c {colour} s{level}", hop.cost
    for (name, tone), cost in zip(_REST, (way.sides, way.attention, way.steps), strict=True):
        yield name, tone, cost
    if way.sent_bytes:
        yield f"between stages, {format_bytes(way.sent_bytes)} a token", _REST[-1][1], way.travel


def _legend() -> Markup:
    entries: list[Child] = [tag("li", "boxes of segments are as above", class_="hint")]
    for name, tone in _REST:
        box = tag("rect", y=1, width=10, height=10, rx=2, class_=tone)
        entries.append(tag("li", tag("svg", box, width=10, height=12, aria_hidden="true"), tag("span", name)))
    return tag("ul", entries, class_="legend")


def _picture(facts: Facts, ways: Ways, lanes: Sequence[Lane]) -> Markup:
    """One scale for all, to the longest; targets beyond it stand in words only."""
    most_s = max(_prompt_s(facts, ways, lane) for lane in lanes)
    rows = [_row(facts, ways, lane, row, most_s) for row, lane in enumerate(lanes)]
    return drawing(rows, len(rows), "Time on the way", top=_TOP)


def _row(facts: Facts, ways: Ways, lane: Lane, row: int, most_s: float) -> Markup:
    way = _way(facts, ways, lane)
    assert way is not None
    top = _TOP + row * ROW
    middle = top + ROW // 2
    scale = TRACK / max(most_s, 1e-12)
    target_s = _target_s(facts, lane)
    words = format_s(way.prompt_s) + ("" if target_s is None else f" of {format_s(target_s)}")
    parts: list[Child] = [
        tag("rect", x=0, y=top, width=WIDTH, height=ROW, class_="hit", data_key=f"h{lane[0]}"),
        tag("text", clipped(_name(facts, lane), 24), x=NAMES - 10, y=middle + 4, class_="end"),
    ]
    left = float(NAMES)
    for _, kind, cost in _parts(facts, way):
        width = cost.prompt_s * scale
        if width >= 0.1:
            box = {"y": top + (ROW - BOX) // 2, "width": round(max(0.1, width - 1), 1), "height": BOX}
            parts.append(tag("rect", x=round(left, 1), **box, class_=f"{kind} part"))
        left += width
    if target_s is not None and target_s <= most_s:
        place = round(NAMES + target_s * scale, 1)
        parts.append(tag("line", x1=place, y1=top + 1, x2=place, y2=top + ROW - 1, class_="target"))
    over = target_s is not None and way.prompt_s > target_s
    parts.append(tag("text", words + (", over" if over else ""), x=NAMES + TRACK + 14, y=middle + 4, class_="muted"))
    return tag("g", parts, class_="lane")


def _table(facts: Facts, ways: Ways, lanes: Sequence[Lane]) -> Markup:
    rows: list[list[Child]] = []
    for lane in lanes:
        way = _way(facts, ways, lane)
        assert way is not None
        devices = [hop.devices for hop in way.hops]
        for number, (name, _, cost) in enumerate(_parts(facts, way)):
            if not (cost.read_bytes or cost.prompt_s):
                continue
            own = devices[number] if number < len(devices) else ()
            where = ", ".join(facts.plan.devices[device].address for device in own)
            rows.append([_name(facts, lane), name, where, format_bytes(cost.read_bytes), *_times(cost)])
        beside = _beside_target(facts, ways, lane).lstrip(", ")
        rows.append([_name(facts, lane), "all of it", beside, format_bytes(way.read_bytes), *map(format_s, _both(way))])
    head = ["app", "hop", "devices, target", "read for a token", "a token", "the prompt"]
    return table("Bytes and time of each hop", head, rows, numbers=3)


def _times(cost: Cost) -> tuple[str, str]:
    return format_s(cost.token_s), format_s(cost.prompt_s)


def _both(way: Way) -> tuple[float, float]:
    return way.token_s, way.prompt_s
