"""Where a value stands, and what it means to be the type of an attribute.

A type turns an evaluated :class:`~blockc.spec.values.Value` into plain data (int, Fraction, str, a
source, ...) in base units, or reports and gives None. Invariant: a type never guesses; a value
that could mean two things is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from blockc.diag import Diagnostics, Span
from blockc.spec.expand import Folder
from blockc.spec.values import Value, describe


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """The named declarations of a run, and which of them something refers to."""

    spans: Mapping[str, Mapping[str, Span]]  # kind -> name -> where
    used: set[tuple[str, str]] = field(default_factory=set)

    def names(self, kinds: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of declarations of these kinds."""
        return tuple(name for kind in kinds for name in self.spans.get(kind, {}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Where a value stands: for messages, relative paths and references."""

    diags: Diagnostics
    declared: Declared
    folder: Folder
    where: str  # "`rate` of `traffic`"

    def wrong_type(self, expected: str, value: Value, *, help_: str | None = None) -> None:
        """Report BC104."""
        message = f"{self.where}: expected {expected}, found {describe(value)}"
        self.diags.report("BC104", message, at=value.span, help=help_)

    def out_of_range(self, message: str, value: Value, *, help_: str | None = None) -> None:
        """Report BC109."""
        self.diags.report("BC109", f"{self.where}: {message}", at=value.span, help=help_)

    def not_in_effect(self, what: str, span: Span) -> None:
        """Report BC804."""
        report_not_in_effect(self.diags, what, span)


def report_not_in_effect(diags: Diagnostics, what: str, span: Span) -> None:
    """Report that something is understood and changes nothing."""
    message = f"{what} is accepted and nothing acts on it yet"
    help_ = "the plan is the same without it; `# blockc: allow(BC804)` on its line says that you know"
    diags.report("BC804", message, at=span, help=help_)


class ValueType(Protocol):
    """What an attribute holds."""

    @property
    def expects(self) -> str:
        """The type as a phrase for messages: ``a size such as `16GiB```."""

    def convert(self, value: Value, context: Context) -> object | None:
        """Return plain data, or None after a report."""
