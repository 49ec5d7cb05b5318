"""The diagnostic, its labels, and the collector that stages write to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from blockc.diag.codes import CODES, Code, Severity
from blockc.diag.span import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A span with a few words about its part in the problem."""

    span: Span
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostic:
    """One problem.

    ``message`` is one line and names the thing; ``notes`` say why; ``help`` says what to do.
    ``primary`` is None only where no source text is involved (a plan file, a command-line option).
    """

    code: Code
    message: str
    primary: Label | None = None
    secondary: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    help: str | None = None

    @property
    def severity(self) -> Severity:
        """Error or warning, as the table of codes says."""
        return self.code.severity


@dataclass(slots=True)
class Diagnostics:
    """Collects the problems of a phase, in the order in which they were found."""

    items: list[Diagnostic] = field(default_factory=list)

    def report(
        self,
        code: str,
        message: str,
        *,
        at: Span | None = None,
        label: str = "",
        secondary: tuple[Label, ...] = (),
        notes: tuple[str, ...] = (),
        help: str | None = None,  # noqa: A002 - the field's established name
    ) -> Diagnostic:
        """Add a problem. ``code`` is such as ``"BC101"``; the table of codes has its severity."""
        item = Diagnostic(
            code=CODES[code],
            message=message,
            primary=Label(span=at, text=label) if at is not None else None,
            secondary=secondary,
            notes=notes,
            help=help,
        )
        self.items.append(item)
        return item

    @property
    def has_errors(self) -> bool:
        """Whether the phase cannot go on."""
        return any(item.severity is Severity.ERROR for item in self.items)

    def raise_if_errors(self) -> None:
        """End a phase: raise :class:`DiagnosticError` with everything if any is an error."""
        if self.has_errors:
            raise DiagnosticError(self)

    def __iter__(self) -> Iterator[Diagnostic]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class DiagnosticError(Exception):
    """A phase ended with errors. The command line renders ``diagnostics`` and nothing else."""

    def __init__(self, diagnostics: Diagnostics) -> None:
        super().__init__("; ".join(f"{d.code}: {d.message}" for d in diagnostics))
        self.diagnostics = diagnostics


def refuse(code: str, message: str, help: str | None = None) -> NoReturn:  # noqa: A002 - the field's established name
    """Raise a :class:`DiagnosticError` with one problem that has no place in a spec."""
    diags = Diagnostics()
    diags.report(code, message, help=help)
    raise DiagnosticError(diags)
