"""A row of a trace, and the one way to say what is wrong with a line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from blockc.diag import Diagnostics, Span

# Longer than any context: what is above is a broken file.
MAX_TOKENS: Final = 10_000_000
_MAX_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class TraceRow:
    """``at_s``: seconds since any moment. ``app``: whom it asks for, if the trace says. ``line``: counted from 1."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    line: int
    blocks: tuple[int, ...] = ()
    app: str | None = None


class LineError(Exception):
    """What is wrong with a line, in words."""


@dataclass(slots=True)
class Lines:
    """The lines of one file, and what was found wrong with them. ``wrong`` counts all, 20 are shown."""

    file: str
    diags: Diagnostics
    wrong: int = 0
    left_out: dict[str, int] = field(default_factory=dict)

    def report(self, number: int, text: str, message: str, *, help_: str | None = None, code: str = "BC503") -> None:
        """Point at a line."""
        self.wrong += 1
        if self.wrong <= _MAX_SHOWN:
            end = max(2, min(len(text), 200) + 1)
            span = Span(file=self.file, start_line=number, start_column=1, end_line=number, end_column=end)
            self.diags.report(code, message, at=span, help=help_)

    def close(self) -> None:
        """Say how many more there are."""
        if self.wrong > _MAX_SHOWN:
            self.diags.report("BC503", f"{self.file}: {self.wrong - _MAX_SHOWN} more lines are wrong")

    def leave_out(self, reason: str) -> None:
        """Count a request that is in the file and is not simulated."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1

    def rows(self, lines: Iterable[tuple[int, str]], parse: Callable[[int, str], TraceRow]) -> list[TraceRow]:
        """Parse each line; those that cannot be are reported, those that ask for nothing are left out."""
        found = []
        for number, text in lines:
            if not text.strip():
                continue
            try:
                row = parse(number, text)
            except LineError as error:
                self.report(number, text, str(error))
                continue
            if row.prompt_tokens == 0:
                self.leave_out("no prompt")
            elif row.output_tokens == 0:
                self.leave_out("no answer")
            else:
                found.append(row)
        return found


def tokens_of(value: object, name: str) -> int:
    """A count of tokens. Raises `LineError`."""
    if isinstance(value, str):
        text = value.strip()
        if not (text.isascii() and text.isdigit()):
            raise LineError(f"`{name}` is {_shown(value)}, expected a whole number of tokens")
        value = int(text[:20])
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKENS:
        raise LineError(f"`{name}` is {_shown(value)}, expected a whole number of tokens, at most {MAX_TOKENS:,}")
    return value


def seconds_of(value: object, name: str) -> float:
    """Seconds, as a number. Raises `LineError`."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise LineError(f"`{name}` is {_shown(value)}, expected seconds") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise LineError(f"`{name}` is {_shown(value)}, expected seconds")
    return float(value)


def _shown(value: object) -> str:
    text = str(value)
    text = "".join(char if char.isprintable() else "?" for char in text[:40]) + ("..." if len(text) > 40 else "")
    return f"`{text}`" if text else "empty"
