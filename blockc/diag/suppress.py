"""``# blockc: allow(BC301)``: a warning that somebody looked at and accepts.

In: diagnostics and the suppressions that the spec's comments hold. Out: the diagnostics without
those that a suppression on their line covers. Errors are never suppressed. A suppression that
covers nothing is itself reported (BC803), but only by the phase that could raise its code: the
caller says which are judged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from blockc.diag.codes import CODES, Severity
from blockc.diag.diagnostic import Diagnostic, Diagnostics
from blockc.diag.span import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Suppression:
    """One code that one comment allows on its line."""

    code: str
    span: Span  # of the comment

    def covers(self, diagnostic: Diagnostic) -> bool:
        """Return whether this suppression takes ``diagnostic`` away."""
        if diagnostic.primary is None or diagnostic.severity is not Severity.WARNING:
            return False
        span = diagnostic.primary.span
        same_line = span.file == self.span.file and span.start_line == self.span.start_line
        return same_line and diagnostic.code.id == self.code


def suppress(diagnostics: Iterable[Diagnostic], suppressions: Iterable[Suppression]) -> Diagnostics:
    """Return the diagnostics that no suppression covers."""
    by_line = _by_line(suppressions)
    return Diagnostics(items=[item for item in diagnostics if not _covering(item, by_line)])


def report_unused(
    diagnostics: Iterable[Diagnostic],
    suppressions: Iterable[Suppression],
    *,
    judged: frozenset[str],
    diags: Diagnostics,
) -> None:
    """Report to ``diags`` the suppressions of ``judged`` codes that cover none of ``diagnostics``.

    To be asked only after a phase without errors: one that was cut short may not have raised
    everything.
    """
    suppressions = tuple(suppressions)
    by_line = _by_line(suppressions)
    used = {suppression for item in diagnostics for suppression in _covering(item, by_line)}
    for suppression in suppressions:
        if suppression not in used:
            _report(suppression, judged, diags)


_Place: TypeAlias = tuple[str, int]


def _by_line(suppressions: Iterable[Suppression]) -> dict[_Place, list[Suppression]]:
    by_line: dict[_Place, list[Suppression]] = {}
    for suppression in suppressions:
        place = (suppression.span.file, suppression.span.start_line)
        by_line.setdefault(place, []).append(suppression)
    return by_line


def _covering(diagnostic: Diagnostic, by_line: dict[_Place, list[Suppression]]) -> list[Suppression]:
    if diagnostic.primary is None:
        return []
    span = diagnostic.primary.span
    here = by_line.get((span.file, span.start_line), [])
    return [suppression for suppression in here if suppression.covers(diagnostic)]


def _report(suppression: Suppression, judged: frozenset[str], diags: Diagnostics) -> None:
    code = CODES.get(suppression.code)
    if code is None:
        message = f"no diagnostic has the code `{suppression.code}`"
        help_ = "`blockc rule` lists the codes"
    elif code.severity is Severity.ERROR:
        message = f"{code} is an error; only warnings can be allowed"
        help_ = "remove the comment and correct the error"
    elif code.id in judged:
        message = f"nothing on this line raises {code}"
        help_ = "remove the comment, or move it to the end of the line that it is about"
    else:
        return
    diags.report("BC803", message, at=suppression.span, help=help_)
