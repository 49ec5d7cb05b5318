"""The schema as a reference for readers.

In: the schema. Out: Markdown, the tables of docs/language.md. Invariant: deterministic, and complete: a test compares
the file with it, so that the documentation cannot fall behind.
"""

from __future__ import annotations

from collections.abc import Iterator

from blockc.spec.kind import AttributeSpec, Kind
from blockc.spec.schema import ROOT, all_kinds
from blockc.spec.units import UNITS, dimension_name


def kinds_markdown() -> str:
    """Return one section per kind of block, with a table of its attributes."""
    return "\n".join("\n".join(_kind(kind)) for kind in all_kinds())


def units_markdown() -> str:
    """Return a table of the units."""
    by_dimension: dict[str, list[str]] = {}
    for unit in UNITS.values():
        if unit.symbol:
            by_dimension.setdefault(dimension_name(unit.dimension), []).append(f"`{unit.symbol}`")
    rows = ["| amount | units |", "|---|---|"]
    rows += [f"| {name} | {' '.join(symbols)} |" for name, symbols in by_dimension.items()]
    return "\n".join(rows) + "\n"


def _kind(kind: Kind) -> Iterator[str]:
    yield f"### `{kind.name}`"
    yield ""
    doc = kind.doc[0].upper() + kind.doc[1:]
    yield f"{doc}. {_placing(kind)}" + ("" if kind.in_effect else " *Not in effect yet (BC804).*")
    yield ""
    if kind.attributes:
        yield "| attribute | holds | default | meaning |"
        yield "|---|---|---|---|"
        for spec in kind.attributes:
            yield _row(spec, kind)
        yield ""


def _placing(kind: Kind) -> str:
    homes = [outer for outer in (ROOT, *all_kinds()) if kind in outer.blocks]
    places = " and ".join("at the top level" if home is ROOT else f"in `{home.name}`" for home in homes)
    header = kind.name + (" NAME" if kind.named else "")
    if kind.parent is not None:
        header += " : PARENT" if kind.parent.required else " [: PARENT]"
    words = [f"`{header} {{ ... }}`, {places}", "any number" if kind.many else "at most one"]
    if kind.parent is not None:
        words.append(f"PARENT is {_cell(kind.parent.type.expects)}")
    return "; ".join(words) + "."


def _row(spec: AttributeSpec, kind: Kind) -> str:
    default = "required" if spec.required else _default(spec.default)
    effect = "" if spec.in_effect or not kind.in_effect else " *(BC804)*"
    return f"| `{spec.name}` | {_cell(spec.type.expects)} | {default} | {_cell(spec.doc)}{effect} |"


def _default(default: object | None) -> str:
    return "" if default is None else f"`{default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
