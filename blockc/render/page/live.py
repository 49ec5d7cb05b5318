"""Live: what the server does now, app by app. Empty here; the page's script fills it with what the server sends.

In: facts. Out: the section. Only a server's page has it.
"""

from __future__ import annotations

from blockc.render.facts import Facts
from blockc.render.page.element import Markup, tag
from blockc.render.page.table import as_table, section, table

_FIGURES = (
    ("tokens", "tokens a second"),
    ("running", "requests running"),
    ("waiting", "requests waiting"),
    ("rows", "rows a step"),
    ("chains", "models a step"),
    ("kv", "KV pages in use"),
    ("cached", "KV pages cached"),
    ("evicted", "evictions a minute"),
    ("preemptions", "preemptions a minute"),
    ("sides", "side loads a minute"),
)
_HEAD = ("app", "running", "waiting", "tokens a second", "TTFT p50", "TTFT p95", "prompt found in cache", "ended")


def live_section(facts: Facts) -> Markup:
    """The view."""
    tiles = [
        tag(
            "li",
            tag("span", name, class_="tile-name"),
            tag("output", "-", data_live=key),
            _spark(key),
            class_="tile",
        )
        for key, name in _FIGURES
    ]
    rows = [
        tag(
            "tr",
            tag("th", app.address, scope="row"),
            [tag("td", "-", class_="n") for _ in _HEAD[1:]],
            data_app=str(index),
        )
        for index, app in enumerate(facts.plan.apps)
    ]
    head = tag("tr", tag("th", _HEAD[0], scope="col"), [tag("th", name, scope="col", class_="n") for name in _HEAD[1:]])
    content = tag(
        "table",
        tag("caption", "Apps now; times to first token (TTFT) are of the last minute"),
        tag("thead", head),
        tag("tbody", rows),
        id="live-apps",
    )
    return section(
        "live",
        "Live",
        "Figures of this server, once a second while this page is in sight. Rates are of 10 s, lines of a minute.",
        tag("p", "Waiting for the first figures …", id="live-state", role="status"),
        tag("ul", tiles, class_="tiles"),
        as_table(_figures_table()),
        tag("div", content, class_="scroll", tabindex=0, role="region", aria_label="Apps now"),
    )


def _figures_table() -> Markup:
    """What the lines show, in words."""
    head = ("figure", "now", "least", "most")
    rows = [[name, *(tag("span", "-", data_figure=key) for _ in head[1:])] for key, name in _FIGURES]
    return table("Figures of the last minute", head, rows, numbers=3)


def _spark(key: str) -> Markup:
    """The last minute as a line, without words: the figure above it has them."""
    return tag(
        "svg",
        class_="spark",
        data_spark=key,
        height=30,
        viewBox="0 0 148 30",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
