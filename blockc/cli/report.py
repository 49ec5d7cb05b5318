"""How a command ends: what is printed where, and the exit code.

In: diagnostics, result documents, exceptions. Out: stdout carries results only (with ``--json``
one document that has a ``format_version``), stderr everything else. Invariant: a user's mistake
never shows a traceback.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from blockc.diag import Diagnostic, DiagnosticError, Diagnostics

if TYPE_CHECKING:
    import typer

FORMAT_VERSION = 1
_INFEASIBLE = {"BC401", "BC402", "BC501"}
_MAX_SOURCE_BYTES = 8 << 20


class ExitCode(IntEnum):
    """What the exit code of a command says."""

    FINE = 0
    ERRORS = 1
    INFEASIBLE = 3
    USAGE = 64
    INTERNAL = 70
    INTERRUPTED = 130


class SourceFiles(Mapping[str, str]):
    """The texts that spans point into, read on demand: a span names its file as the user would."""

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self._known: dict[str, str | None] = dict(known or {})

    def __getitem__(self, name: str) -> str:
        if name not in self._known:
            self._known[name] = _text(name)
        text = self._known[name]
        if text is None:
            raise KeyError(name)
        return text

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, text in self._known.items() if text is not None])

    def __len__(self) -> int:
        return len(list(iter(self)))


def _text(name: str) -> str | None:
    try:
        with open(name, "rb") as file:
            return file.read(_MAX_SOURCE_BYTES).decode("utf-8", errors="replace")
    except (OSError, ValueError):
        return None


def show(diagnostics: Iterable[Diagnostic], sources: Mapping[str, str] | None = None) -> None:
    """Print diagnostics and their count to stderr."""
    from blockc.diag.render import render_all, summary, wants_colour

    items = tuple(diagnostics)
    if not items:
        return
    colour = wants_colour(sys.stderr, os.environ)
    print(render_all(items, SourceFiles(sources), colour=colour), file=sys.stderr)
    print(summary(items), file=sys.stderr)


def exit_code(diagnostics: Iterable[Diagnostic]) -> ExitCode:
    """Return the exit code that the diagnostics of a command call for."""
    collected = Diagnostics(items=list(diagnostics))
    if not collected.has_errors:
        return ExitCode.FINE
    if any(item.code.id == "BC999" for item in collected):
        return ExitCode.INTERNAL
    infeasible = any(item.code.id in _INFEASIBLE for item in collected)
    return ExitCode.INFEASIBLE if infeasible else ExitCode.ERRORS


def print_document(command: str, **content: Any) -> None:
    """Print the result document of a command to stdout."""
    document = {"format_version": FORMAT_VERSION, "command": command, **content}
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


@contextmanager
def reporting(command: str, *, as_json: bool) -> Iterator[None]:
    """Run the body of a command: with ``--json`` its errors become the result document.

    Without, they pass through and :func:`guarded` renders them on stderr.
    """
    try:
        yield
    except DiagnosticError as error:
        if not as_json:
            raise
        from blockc.diag.json import diagnostics_document

        print_document(command, ok=False, diagnostics=diagnostics_document(error.diagnostics))
        raise SystemExit(int(exit_code(error.diagnostics))) from None


def guarded(app: typer.Typer, arguments: list[str]) -> int:
    """Run the application and turn every way in which it can end into an exit code."""
    import typer
    from typer.main import get_command

    # New versions of typer bring click along as a private package: this is its UsageError in all.
    usage_error = typer.BadParameter.__bases__[0]
    try:
        command = get_command(app)
        status = command.main(arguments, prog_name="blockc", standalone_mode=False)
        sys.stdout.flush()
        if status == ExitCode.INTERRUPTED:  # typer's answer to Ctrl-C
            print("interrupted", file=sys.stderr)
        return int(status) if isinstance(status, int) else int(ExitCode.FINE)
    except DiagnosticError as error:
        show(error.diagnostics)
        return int(exit_code(error.diagnostics))
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.FINE)
    except SystemExit as stop:
        return int(stop.code) if isinstance(stop.code, int) else int(ExitCode.ERRORS)
    except Exception as error:
        if isinstance(error, usage_error):
            error.message = str(error.message).replace("Value error, ", "")  # type: ignore[attr-defined]  # pydantic's
            error.show(file=sys.stderr)  # type: ignore[attr-defined]  # every UsageError has it
            return int(ExitCode.USAGE)
        if "--traceback" in arguments:
            raise
        _internal(error)
        return int(ExitCode.INTERNAL)


def _internal(error: Exception) -> None:
    from blockc import __version__
    from blockc.diag import Diagnostics

    diags = Diagnostics()
    words = str(error).splitlines()[:1]
    diags.report(
        "BC999",
        f"a bug in blockc {__version__}: {type(error).__name__}{': ' + words[0] if words else ''}",
        help="please report it, with the spec; `blockc --traceback ...` shows where it happened",
    )
    show(diags)
