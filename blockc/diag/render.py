"""Render diagnostics as text, in the style of rustc.

In: diagnostics, the texts they point into, whether to use colours. Out: text, one paragraph a
diagnostic. Invariant: deterministic; control characters of a source never reach the terminal; a
secret is not repeated; a span that does not fit its text (a file that changed) is shown as its
position only.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TextIO

from blockc.diag.codes import Severity
from blockc.diag.diagnostic import Diagnostic, Label
from blockc.diag.span import Span

_TAB = 4
_LONGEST_LINE = 160  # a generated spec may be one line of a megabyte

_STYLES = {
    "error": "\x1b[1;31m",
    "warning": "\x1b[1;33m",
    "frame": "\x1b[1;34m",
    "strong": "\x1b[1m",
    "help": "\x1b[1;36m",
}
_RESET = "\x1b[0m"


def wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether to colour what is written to ``stream`` (https://no-color.org)."""
    if environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def render_all(diagnostics: Iterable[Diagnostic], sources: Mapping[str, str], *, colour: bool = False) -> str:
    """Return all diagnostics as text, with an empty line between any two."""
    rendered = [render(item, sources, colour=colour) for item in diagnostics]
    return "\n".join(rendered)


def render(diagnostic: Diagnostic, sources: Mapping[str, str], *, colour: bool = False) -> str:
    """Return one diagnostic as lines that end in a newline."""
    return _Renderer(diagnostic=diagnostic, sources=sources, colour=colour).run()


def summary(diagnostics: Iterable[Diagnostic]) -> str:
    """Return such as ``2 errors, 1 warning``; empty if there are none."""
    counts = {Severity.ERROR: 0, Severity.WARNING: 0}
    for item in diagnostics:
        counts[item.severity] += 1
    parts = [f"{count} {severity.value}{'' if count == 1 else 's'}" for severity, count in counts.items() if count]
    return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Renderer:
    diagnostic: Diagnostic
    sources: Mapping[str, str]
    colour: bool

    def run(self) -> str:
        item = self.diagnostic
        severity = item.severity.value
        head = self._style(f"{severity}[{item.code}]", severity)
        lines = [f"{head}: {self._style(_printable(item.message), 'strong')}   ({item.code.slug})"]
        lines += self._snippets()
        margin = " " * self._margin()
        for kind, text in [*(("note", note) for note in item.notes), ("help", item.help)]:
            if text is not None:
                first, *rest = text.splitlines() or [""]
                mark = self._style("=", "frame")
                lines.append(f"{margin} {mark} {self._style(kind, 'help')}: {_printable(first)}")
                lines += [f"{margin}         {_printable(line)}" for line in rest]
        return "\n".join(lines) + "\n"

    def _style(self, text: str, style: str) -> str:
        return f"{_STYLES[style]}{text}{_RESET}" if self.colour else text

    def _labels(self) -> list[Label]:
        primary = self.diagnostic.primary
        return [*([primary] if primary is not None else []), *self.diagnostic.secondary]

    def _margin(self) -> int:
        lines = [label.span.start_line for label in self._labels()]
        return len(str(max(lines, default=0)))

    def _snippets(self) -> list[str]:
        """Return the lines of the snippets: the primary place first, the others in their order."""
        out: list[str] = []
        margin = " " * self._margin()
        bar = self._style("|", "frame")
        current_file: str | None = None
        for group in _by_line(self._labels()):
            span = group[0].span
            if span.file != current_file:
                arrow = "-->" if current_file is None else ":::"
                out.append(f"{margin}{self._style(arrow, 'frame')} {_printable(str(span))}")
                current_file = span.file
            text = self._line(span)
            if text is None:
                out += [f"{margin} {bar} {span}: {label.text}" for label in group if label.text]
                continue
            out.append(f"{margin} {bar}")
            number = self._style(str(span.start_line).rjust(len(margin)), "frame")
            shown, offset = self._shown(text, group)
            out.append(f"{number} {bar} {shown}".rstrip())
            for label in group:
                out.append(f"{margin} {bar} {self._marks(text, label, offset)}")
        if out:
            out.append(f"{margin} {bar}")
        return out

    def _line(self, span: Span) -> str | None:
        source = self.sources.get(span.file)
        if source is None:
            return None
        lines = source.split("\n", span.start_line)
        if len(lines) < span.start_line:
            return None
        return lines[span.start_line - 1].rstrip("\r")

    def _shown(self, text: str, group: list[Label]) -> tuple[str, int]:
        """Return the line as shown, and how many columns of a long one are cut off at its start."""
        if self.diagnostic.code.id == "BC602":
            for label in group:
                start, end = _columns(label.span, text)
                text = text[:start] + "*" * (end - start) + text[end:]
        if len(text) <= _LONGEST_LINE:
            return _printable(text), 0
        start = max(0, group[0].span.start_column - 1 - _LONGEST_LINE // 4)
        cut = _printable(text[start : start + _LONGEST_LINE])
        before, after = "..." if start else "", "..." if start + _LONGEST_LINE < len(text) else ""
        return f"{before}{cut}{after}", start

    def _marks(self, text: str, label: Label, offset: int) -> str:
        is_primary = label is self.diagnostic.primary
        start, end = _columns(label.span, text)
        end = min(end, offset + _LONGEST_LINE) if offset or len(text) > _LONGEST_LINE else end
        indent = _width(text[offset:start]) + (3 if offset else 0)
        length = max(1, _width(text[start:end]))
        mark = ("^" if is_primary else "-") * length
        style = self.diagnostic.severity.value if is_primary else "frame"
        words = f" {_printable(label.text)}" if label.text else ""
        return " " * indent + self._style(mark + words, style)


def _by_line(labels: list[Label]) -> list[list[Label]]:
    groups: dict[tuple[str, int], list[Label]] = {}
    for label in labels:
        groups.setdefault((label.span.file, label.span.start_line), []).append(label)
    return list(groups.values())


def _columns(span: Span, text: str) -> tuple[int, int]:
    """Return the part of the first line that a span covers, as indexes into the line."""
    start = min(span.start_column - 1, len(text))
    end = span.end_column - 1 if span.end_line == span.start_line else len(text.rstrip())
    return start, max(start, min(end, len(text)))


def _printable(text: str) -> str:
    """Replace tabs by spaces, and what could steer a terminal by a visible sign."""
    out = []
    for character in text:
        if character == "\t":
            out.append(" " * _TAB)
        elif not character.isprintable():
            out.append("\N{REPLACEMENT CHARACTER}")
        else:
            out.append(character)
    return "".join(out)


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    width = 0
    for character in text:
        if character == "\t":
            width += _TAB
        elif unicodedata.combining(character):
            continue
        else:
            width += 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
    return width
