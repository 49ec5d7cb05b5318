"""Values: what expressions evaluate to.

Every value knows the span of the expression that gave it. Names that no ``let``, ``var`` or
``for`` binds stay :class:`Word`: whether ``bf16`` is a setting or ``tiny`` a base is for the
schema to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from blockc.diag import Span
from blockc.spec.units import Quantity, dimension_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A name that stands for itself, such as ``bf16`` or a reference to a declaration."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """The name of a secret. Its value is looked up by the runtime and is never known here."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A form such as ``hf("./x")`` or ``delta(max_error = 1%)`` that the schema interprets."""

    name: str
    positional: tuple[Value, ...]
    named: Mapping[str, Value]
    name_span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """``first..last``, both included."""

    first: int
    last: int

    def __len__(self) -> int:
        return max(0, self.last - self.first + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """``{ name = value }``."""

    fields: Mapping[str, Value]


Data: TypeAlias = "Quantity | str | bool | Word | Secret | Call | Range | Object | tuple[Value, ...] | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """Data and where it was written."""

    data: Data
    span: Span


def describe(value: Value) -> str:
    """Return a value as messages speak of it: the duration `8s`."""
    data = value.data
    if isinstance(data, Quantity):
        return f"the {dimension_name(data.dimension)} `{data}`"
    if isinstance(data, str):
        return f'the string "{shorten(data)}"'
    if isinstance(data, bool):
        return f"`{str(data).lower()}`"
    if data is None:
        return "`null`"
    if isinstance(data, Word):
        return f"the name `{shorten(data.name)}`"
    if isinstance(data, Secret):
        return "a secret"
    if isinstance(data, Call):
        return f"`{data.name}(...)`"
    if isinstance(data, Range):
        return f"the range `{data.first}..{data.last}`"
    if isinstance(data, Object):
        return "an object"
    return "a list"


def shorten(text: str, limit: int = 60) -> str:
    """Return text that fits a message: one line, not too long."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
