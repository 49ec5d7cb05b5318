"""Chains: a row for each app, a box for each segment over the rows of all apps that it is launched for.

In: facts. Out: the section. Rows of one base stand together, ordered by their segments, so that what is shared lies
side by side; a box that is drawn in several parts is still one launch. Keys: ``s`` and a segment, ``a`` and an app.
"""

from __future__ import annotations

from collections.abc import Iterator

from blockc.render.facts import Facts, lineage, span_words
from blockc.render.hops import Ways
from blockc.render.page.element import Markup, tag
from blockc.render.page.palette import family_class
from blockc.render.page.table import MOST_ROWS, Note, View, as_table, figure, listed, section, table
from blockc.render.page.track import BOX, NAMES, ROW, TOP, TRACK, WIDTH, axis, clipped, drawing, fits, positions
from blockc.render.page.ways import way_notes, ways_part
from blockc.render.units import counted, format_bytes


def chains_section(facts: Facts, ways: Ways) -> View:
    """The view. ``ways``: what each chain costs."""
    plan = facts.plan
    if not plan.apps:
        return View(markup=section("chains", "Chains", "No app uses this plan."))
    groups: dict[int, list[int]] = {}
    for index, app in enumerate(plan.apps):
        groups.setdefault(facts.family_of_path[plan.chains[app.chain].path], []).append(index)
    lanes = {family: _lanes(facts, apps) for family, apps in sorted(groups.items())}
    pictures = [
        tag("div", tag("h3", facts.families[family]), figure(_picture(facts, family, own)), class_="node")
        for family, own in lanes.items()
    ]
    lead = (
        "Every row is an app, from its first block to its last. A box is a segment: it is launched once a step, on the "
        "tokens of all the apps whose rows it covers. Dots mark rows that bring adapters of their own."
    )
    folded = [lane for own in lanes.values() for lane in own if len(lane) > 1]
    if folded:
        lead += " Apps that are alike in all of this share a row."
    return View(
        markup=section(
            "chains", "Chains", lead, pictures, as_table(_table(facts)), ways_part(facts, ways, list(lanes.values()))
        ),
        notes={_key(lane): _note(facts, lane) for lane in folded}
        | dict(way_notes(facts, ways, [lane for own in lanes.values() for lane in own])),
        keys={app: [_key(lane), f"h{lane[0]}"] for own in lanes.values() for lane in own for app in lane},
    )


def _lanes(facts: Facts, apps: list[int]) -> list[tuple[int, ...]]:
    """The apps of each row: one, or where that is more than one can read all that are alike."""
    plan = facts.plan
    if len(apps) <= MOST_ROWS:
        return [(app,) for app in apps]
    alike: dict[tuple[object, ...], list[int]] = {}
    for app in apps:
        number = plan.apps[app].chain
        chain = plan.chains[number]
        alike.setdefault((chain.segments, facts.devices_of_chain[number], chain.sides is None), []).append(app)
    return [tuple(own) for own in alike.values()]


def _key(lane: tuple[int, ...]) -> str:
    return f"a{lane[0]}" if len(lane) == 1 else f"g{lane[0]}"


def _note(facts: Facts, lane: tuple[int, ...]) -> Note:
    apps = [facts.plan.apps[app] for app in lane]
    tenants = sorted({app.tenant for app in apps})
    return counted(len(lane), "app"), [
        ("apps", listed([app.address for app in apps])),
        ("of", listed(tenants)),
        ("run on", facts.place(apps[0].chain)),
    ]


def _picture(facts: Facts, family: int, lanes: list[tuple[int, ...]]) -> Markup:
    users = [len(facts.apps_of_segment(segment)) for segment in facts.plan.segments]

    def rank(lane: tuple[int, ...]) -> tuple[list[tuple[int, int]], str]:
        """What most share comes first; apps that go on together stay together."""
        return [(-users[segment], segment) for segment in _way(facts, lane)], facts.plan.apps[lane[0]].address

    order = sorted(lanes, key=rank)
    cuts = sorted({place for lane in lanes for s in _way(facts, lane) for place in _ends(facts, s)})
    lefts = positions(cuts)
    parts: list[Markup] = [*axis(cuts, lefts)]
    parts += [_row(facts, lane, row, lefts) for row, lane in enumerate(order)]
    for segment in sorted({s for lane in lanes for s in _way(facts, lane)}):
        rows = [row for row, lane in enumerate(order) if segment in _way(facts, lane)]
        for run in _runs(rows):
            parts += _box(facts, segment, run, lefts, users[segment])
    parts += [mark for row, lane in enumerate(order) for mark in _marks(facts, lane, row, lefts)]
    return drawing(parts, len(order), f"Chains of {facts.families[family]}")


def _row(facts: Facts, lane: tuple[int, ...], row: int, lefts: dict[int, float]) -> Markup:
    entry = facts.plan.apps[lane[0]]
    _, last = _ends(facts, _way(facts, lane)[-1])
    top = TOP + row * ROW
    middle = top + ROW // 2
    name = entry.address if len(lane) == 1 else counted(len(lane), "app")
    place = clipped(facts.place(entry.chain), 26)
    return tag(
        "g",
        tag("rect", x=0, y=top, width=WIDTH, height=ROW, class_="hit", data_key=_key(lane)),
        tag("text", clipped(name, 24), x=NAMES - 10, y=middle + 4, class_="end"),
        tag("line", x1=NAMES - 4, y1=middle, x2=round(lefts[last] + 6, 1), y2=middle, class_="thread"),
        tag("text", place, x=NAMES + TRACK + 14, y=middle + 4, class_="muted"),
        class_="lane",
    )


def _box(facts: Facts, segment: int, rows: tuple[int, int], lefts: dict[int, float], users: int) -> Iterator[Markup]:
    entry = facts.plan.segments[segment]
    first, end = _ends(facts, segment)
    top = TOP + rows[0] * ROW + (ROW - BOX) // 2
    width = lefts[end] - lefts[first] - 3
    level = facts.level(users)
    colour = family_class(facts.family_of_path[entry.path])
    yield tag(
        "rect",
        x=round(lefts[first], 1),
        y=top,
        width=round(width, 1),
        height=(rows[1] - rows[0]) * ROW + BOX,
        rx=3,
        class_=f"c {colour} s{level}",
        data_key=f"s{segment}",
    )
    words = format_bytes(facts.segment_bytes(entry))
    if fits(words, width):
        right = round(lefts[first] + width - 6, 1)  # dots stand at the left
        yield tag("text", words, x=right, y=top + 14, class_=f"end label {colour} on{level}")


def _marks(facts: Facts, lane: tuple[int, ...], row: int, lefts: dict[int, float]) -> Iterator[Markup]:
    """One dot a segment, at its left: which blocks of it have a site of this app's is in the zoo, not in the plan."""
    if facts.plan.chains[facts.plan.apps[lane[0]].chain].sides is None:
        return
    middle = TOP + row * ROW + ROW // 2
    for segment in _way(facts, lane):
        left = round(lefts[_ends(facts, segment)[0]] + 10, 1)
        yield tag("circle", cx=left, cy=middle, r=3.5, class_="dot", data_of=_key(lane))


def _runs(rows: list[int]) -> Iterator[tuple[int, int]]:
    start = previous = rows[0]
    for row in rows[1:]:
        if row != previous + 1:
            yield start, previous
            start = row
        previous = row
    yield start, previous


def _ends(facts: Facts, segment: int) -> tuple[int, int]:
    entry = facts.plan.segments[segment]
    return entry.first, entry.first + entry.count


def _way(facts: Facts, lane: tuple[int, ...]) -> tuple[int, ...]:
    return facts.plan.chains[facts.plan.apps[lane[0]].chain].segments


def _table(facts: Facts) -> Markup:
    plan = facts.plan
    rows = []
    for app in plan.apps:
        chain = plan.chains[app.chain]
        spans = [
            span_words("block", plan.segments[s].first, plan.segments[s].first + plan.segments[s].count - 1)
            for s in chain.segments
        ]
        adapters = f"rank {chain.side_rank}" if chain.side_rank else "others" if chain.sides else "none"
        rows.append(
            [
                app.address,
                " : ".join(lineage(plan, app.model)),
                ", ".join(f"{s} ({span})" for s, span in zip(chain.segments, spans, strict=True)),
                facts.place(app.chain),
                adapters,
                format_bytes(sum(facts.segment_bytes(plan.segments[s]) for s in chain.segments)),
                str(chain.max_model_len),
            ]
        )
    head = ["app", "model", "segments", "devices", "adapters", "weights passed", "longest sequence"]
    return table(f"Chains of {counted(len(plan.apps), 'app')}", head, rows, numbers=2)
