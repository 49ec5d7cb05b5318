"""The table that stands beside every picture, and the words of the picture's parts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from blockc.render.page.element import Child, Markup, tag
from blockc.render.units import printable

Note = tuple[str, Sequence[tuple[str, str]]]  # a title, and facts below it

MOST_ROWS: Final = 60  # of a picture; beyond, rows that are alike become one
_MOST_NAMES = 24  # of a note


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A section, notes of its own, and for each app (by index) the keys of what is its own in it."""

    markup: Markup
    notes: Mapping[str, Note] = field(default_factory=dict)
    keys: Mapping[int, Sequence[str]] = field(default_factory=dict)


def listed(names: Sequence[str]) -> str:
    """Names, at most so many as one reads."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more or "none"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Child]], *, numbers: int = 0) -> Markup:
    """``numbers``: so many of the last columns hold figures."""
    first = len(head) - numbers
    classes = [None if index < first else "n" for index in range(len(head))]
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption),
            tag("thead", tag("tr", [tag("th", h, scope="col", class_=c) for h, c in zip(head, classes, strict=True)])),
            tag("tbody", [_row(row, classes) for row in rows]),
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=caption,
    )


def as_table(content: Markup) -> Markup:
    """Folded below its picture."""
    return tag("details", tag("summary", "As a table"), content, class_="astable")


def figure(picture: Markup, label: str | None = None) -> Markup:
    """A picture that may be wider than the window. ``label``: of one without parts that take the focus."""
    if label is None:
        return tag("figure", tag("div", picture, class_="scroll"))
    return tag("figure", tag("div", picture, class_="scroll", tabindex=0, role="region", aria_label=label))


def section(name: str, title: str, lead: Child, *content: Child) -> Markup:
    """One view."""
    heading = tag("h2", title, id=f"{name}-title")
    return tag("section", heading, tag("p", lead, class_="lead"), *content, id=name, aria_labelledby=f"{name}-title")


def notes_json(notes: Mapping[str, Note]) -> Markup:
    """Notes for a script element: text that no browser takes for markup, whatever names are in it."""
    content = {key: [printable(title), [[k, printable(v)] for k, v in rows]] for key, (title, rows) in notes.items()}
    return embedded(content)


def embedded(content: Any) -> Markup:
    """JSON in which ``<``, ``>`` and ``&`` are escapes, in ASCII."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _row(row: Sequence[Child], classes: Sequence[str | None]) -> Markup:
    head, *rest = row
    return tag(
        "tr",
        tag("th", head, scope="row"),
        [tag("td", cell, class_=c) for cell, c in zip(rest, classes[1:], strict=True)],
    )
