"""Diagnostics as JSON, for editors and continuous integration.

In: diagnostics. Out: plain data in the form of ``FORMAT_VERSION``: keys may be added, none changes
its meaning.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from blockc.diag.diagnostic import Diagnostic, Label
from blockc.diag.span import Span

FORMAT_VERSION = 1


def diagnostics_document(diagnostics: Iterable[Diagnostic]) -> list[dict[str, Any]]:
    """Return one object per diagnostic."""
    return [_diagnostic(item) for item in diagnostics]


def _diagnostic(item: Diagnostic) -> dict[str, Any]:
    return {
        "code": item.code.id,
        "slug": item.code.slug,
        "severity": item.severity.value,
        "message": item.message,
        "primary": _label(item.primary) if item.primary is not None else None,
        "secondary": [_label(label) for label in item.secondary],
        "notes": list(item.notes),
        "help": item.help,
    }


def _label(label: Label) -> dict[str, Any]:
    return {"span": span_document(label.span), "text": label.text}


def span_document(span: Span) -> dict[str, Any]:
    """Return a span as JSON: lines and columns from 1, in code points; the end is exclusive."""
    return {
        "file": span.file,
        "start": {"line": span.start_line, "column": span.start_column},
        "end": {"line": span.end_line, "column": span.end_column},
    }
