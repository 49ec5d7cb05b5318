"""A trace file to rows: find its format, read it, put it in order.

In: a path. Out: a `Trace`, whose first request comes at 0. Raises `DiagnosticError` with every line that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from blockc.diag import DiagnosticError, Diagnostics
from blockc.simulate.traces.objects import is_mooncake, read_jsonl, read_mooncake
from blockc.simulate.traces.row import Lines, TraceRow
from blockc.simulate.traces.tables import AZURE, BURSTGPT, has_columns, read_azure, read_burstgpt

_MAX_BYTES: Final = 4 << 30
_Reader = Callable[[Sequence[str], Lines], list[TraceRow]]
_READERS: Final[dict[str, _Reader]] = {
    "azure": read_azure,
    "burstgpt": read_burstgpt,
    "mooncake": read_mooncake,
    "jsonl": read_jsonl,
}
FORMATS: Final = tuple(_READERS)
_HEADERS: Final = {"azure": AZURE, "burstgpt": BURSTGPT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Rows in the order of time. ``left_out``: requests of the file that ask for nothing, by reason."""

    file: str
    format: str
    rows: tuple[TraceRow, ...]
    left_out: tuple[tuple[str, int], ...]


def read_trace(path: Path, *, diags: Diagnostics, format_: str | None = None) -> Trace:
    """Read a trace; ``format_`` None: the one that its first line has. Raises `DiagnosticError` (BC003, BC503)."""
    text = _text(path, diags)
    found = format_ or _format_of(text)
    lines = Lines(file=str(path), diags=diags)
    if found is None or (found in _HEADERS and not has_columns(text[0], _HEADERS[found])):
        expected = f"; `{found}` has the columns {','.join(_HEADERS[found])}" if found in _HEADERS else ""
        lines.report(
            1,
            text[0],
            f"this is no trace of a known format{expected}",
            help_="formats: Azure's and BurstGPT's tables, Mooncake's JSON lines, and JSON lines with `timestamp`, "
            "`prompt_tokens` and `output_tokens`; see docs/simulate.md",
        )
        raise DiagnosticError(diags)
    rows = _READERS[found](text, lines)
    lines.close()
    if not rows and not lines.wrong:
        diags.report("BC503", f"{path} has no request that asks for anything", help="name another trace")
    diags.raise_if_errors()
    start_s = min(row.at_s for row in rows)
    return Trace(
        file=str(path),
        format=found,
        rows=tuple(sorted((replace(row, at_s=row.at_s - start_s) for row in rows), key=lambda row: row.at_s)),
        left_out=tuple(sorted(lines.left_out.items())),
    )


def _text(path: Path, diags: Diagnostics) -> list[str]:
    problem = None
    lines: list[str] = []
    try:
        if path.stat().st_size > _MAX_BYTES:
            problem = "it is larger than 4 GiB"
        else:
            lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    except OSError as error:
        problem = error.strerror
    if problem is not None:
        diags.report("BC003", f"cannot read {path}: {problem}", help="name a trace with `--trace`")
        raise DiagnosticError(diags)
    return [line.rstrip("\r") for line in lines]


def _format_of(text: Sequence[str]) -> str | None:
    first = next((line for line in text if line.strip()), "")
    for name, columns in _HEADERS.items():
        if has_columns(text[0], columns):
            return name
    if first.lstrip().startswith("{"):
        return "mooncake" if is_mooncake(first) else "jsonl"
    return None
