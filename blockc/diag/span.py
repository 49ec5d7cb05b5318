"""Where in a source file something stands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Span:
    """A range of text: lines and columns from 1, in code points; the end column is exclusive."""

    file: str
    start_line: int
    start_column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.start_line}:{self.start_column}"

    def to(self, end: Span) -> Span:
        """Return the range from the start of this span to the end of ``end``."""
        return Span(
            file=self.file,
            start_line=self.start_line,
            start_column=self.start_column,
            end_line=end.end_line,
            end_column=end.end_column,
        )
