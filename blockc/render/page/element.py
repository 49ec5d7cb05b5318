"""HTML and SVG elements from text that may be anybody's.

In: names of elements, attributes, children. Out: :class:`Markup`. Invariant: whatever is not `Markup` is escaped, and
characters that a reader could not see, or that turn the direction of text, are shown as escapes.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

from blockc.render.units import printable

_EMPTY: Final = frozenset({"br", "col", "input", "link", "meta"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | None | Iterable["Child"]
Attribute = str | int | float | bool | None


def text(words: str) -> Markup:
    """Words as HTML."""
    return words if isinstance(words, Markup) else Markup(escape(printable(words)))


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """One element. ``class_`` is ``class``, ``data_key`` is ``data-key``; None leaves out, True has no value."""
    head = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _EMPTY:
        return Markup(f"<{name}{head}>")
    return Markup(f"<{name}{head}>{''.join(map(_child, children))}</{name}>")


def _child(child: Child) -> str:
    if child is None:
        return ""
    return text(child) if isinstance(child, str) else "".join(map(_child, child))


def _attribute(key: str, value: Attribute) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    return f' {name}="{text(f"{value:g}" if isinstance(value, float) else str(value))}"'
