"""Diagnostics: every user-visible problem is data first and text second.

A :class:`Diagnostic` says what is wrong, where, why, and what to do. Stages collect into a
:class:`Diagnostics` and the caller renders once, so that all problems of a phase are reported
together.
"""

from __future__ import annotations

from blockc.diag.codes import CODES, Code, Severity
from blockc.diag.diagnostic import Diagnostic, DiagnosticError, Diagnostics, Label, refuse
from blockc.diag.span import Span

__all__ = [
    "CODES",
    "Code",
    "Diagnostic",
    "DiagnosticError",
    "Diagnostics",
    "Label",
    "Severity",
    "Span",
    "refuse",
]
