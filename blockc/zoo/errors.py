"""How the zoo says what is wrong: diagnostics, never a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from blockc.diag import DiagnosticError, Diagnostics

HEAL = "delete that file and compile again: the zoo stores again what it lacks"


def fail(
    code: str,
    message: str,
    *,
    notes: tuple[str, ...] = (),
    help: str | None = None,  # noqa: A002 - the field's established name
) -> NoReturn:
    """Raise :class:`DiagnosticError` with one diagnostic."""
    diags = Diagnostics()
    diags.report(code, message, notes=notes, help=help)
    raise DiagnosticError(diags)


@contextlib.contextmanager
def io_errors(path: Path, *, but: type[OSError] | tuple[type[OSError], ...] = ()) -> Iterator[None]:
    """No space, no permission: a diagnostic (BC003), not a traceback. ``but``: what the caller handles."""
    try:
        yield
    except but:
        raise
    except OSError as error:
        where = error.filename or path
        fail("BC003", f"the zoo cannot be used: {where}: {error.strerror or error}")
