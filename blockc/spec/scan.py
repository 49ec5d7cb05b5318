"""Cut a source into tokens, match its brackets, and repair what is not closed.

In: a source. Out: tokens (with the brackets repaired), comments, and the lines on which the repair
was made. Invariant: the brackets of the tokens match and are nested at most ``MAX_NESTING`` deep;
never raises.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from blockc.diag import Diagnostics, Label, Span
from blockc.spec.source import Source
from blockc.spec.syntax import Comment

MAX_NESTING = 64
"""Brackets deeper than this are refused: later phases recurse along them."""

MAX_SYNTAX_ERRORS = 20
"""After this many problems the text is not a spec, and more messages would not help."""

_CLOSER = {"LBRACE": "RBRACE", "LPAR": "RPAR", "LSQB": "RSQB", "INTERPOLATE": "RBRACE"}
_CLOSED_BY = {"RBRACE": ("LBRACE", "INTERPOLATE"), "RPAR": ("LPAR",), "RSQB": ("LSQB",)}
_TEXT = {"RBRACE": "}", "RPAR": ")", "RSQB": "]", "QUOTE": '"'}
_TYPOGRAPHIC = "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2018\u2019"  # quotes of word processors
_ESCAPE = re.compile(r"\\(.)")
_STRAY = re.compile(r"'[^'\n]*'|[^\x00-\x7f]+|[^\s]", re.ASCII)


class Scanned:
    """A token: its terminal, its text, its span, and how many brackets are open before it."""

    __slots__ = ("depth", "indent", "span", "text", "type")

    def __init__(self, type_: str, text: str, span: Span, depth: int, indent: int) -> None:
        self.type = type_
        self.text = text
        self.span = span
        self.depth = depth
        self.indent = indent  # the column of the first token on its line

    @property
    def starts_line(self) -> bool:
        """Whether nothing stands before it on its line."""
        return self.span.start_column == self.indent


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The tokens of a file. Syntax errors on ``repaired_lines`` are consequences of repairs."""

    items: list[Scanned]
    comments: tuple[Comment, ...]
    repaired_lines: frozenset[int]
    first_unclosed_line: int | None  # everything after an unclosed bracket is doubtful


@dataclass(slots=True)
class Scanner:
    """The state of one scan."""

    source: Source
    code: re.Pattern[str]
    quoted: re.Pattern[str]
    keywords: dict[str, str]
    diags: Diagnostics
    line: int = 1
    line_start: int = 0
    indent_line: int = 0
    indent: int = 1
    tokens: list[Scanned] = field(default_factory=list)
    comments: list[Comment] = field(default_factory=list)
    open: list[Scanned] = field(default_factory=list)
    repaired: set[int] = field(default_factory=set)
    first_unclosed_line: int | None = None
    misindented: tuple[Scanned, Scanned] | None = None
    stopped: bool = False

    def run(self) -> Tokens | None:
        """Scan to the end of the text; None if it is nested too deeply to go on."""
        text, position, end = self.source.text, 0, len(self.source.text)
        limit = len(self.diags) + MAX_SYNTAX_ERRORS
        while position < end and not self.stopped:
            if self.open and self.open[-1].type == "QUOTE":
                position = self._in_quotes(text, position)
            else:
                position = self._in_code(text, position)
            if len(self.diags) >= limit:
                return None
        if self.stopped:
            return None
        self._end_of_line(end)
        self._close_at_end(end)
        return Tokens(
            items=self.tokens,
            comments=tuple(self.comments),
            repaired_lines=frozenset(self.repaired),
            first_unclosed_line=self.first_unclosed_line,
        )

    # ------------------------------------------------------------------- modes

    def _in_code(self, text: str, position: int) -> int:
        match = self.code.match(text, position)
        if match is None:
            return self._stray(text, position)
        kind, end = match.lastgroup, match.end()
        assert kind is not None, "every alternative of the pattern is a named group"
        if kind == "SPACE":
            self._skip(text, position, end)
        elif kind == "COMMENT":
            span = self._span(position, end)
            self.comments.append(Comment(text=match.group(), span=span))
            self._skip(text, position, end)
        elif kind == "NAME":
            word = match.group()
            self._emit(self.keywords.get(word, "NAME"), word, self._span(position, end))
        elif kind == "SLASH" and text.startswith("/*", position):
            span = self._span(position, position + 2)
            message = "this `/*` is never closed"
            self.diags.report("BC002", message, at=span, help="end the comment with `*/`")
            self.first_unclosed_line = self.first_unclosed_line or self.line
            return len(text)
        elif kind == "QUOTE" or kind in _CLOSER:
            self._open(kind, match.group(), self._span(position, end))
        elif kind in _CLOSED_BY:
            self._close(kind, match.group(), self._span(position, end))
        else:
            self._emit(kind, match.group(), self._span(position, end))
        return end

    def _in_quotes(self, text: str, position: int) -> int:
        match = self.quoted.match(text, position)
        if match is None:  # the end of the line, or a `\` that ends it
            self._end_of_line(position)
            if text[position] == "\\":
                return position + 1
            return position
        kind, end = match.lastgroup, match.end()
        span = self._span(position, end)
        if kind == "QUOTE":
            self.open.pop()
            self._emit("QUOTE", '"', span)
        elif kind == "INTERPOLATE":
            self._open("INTERPOLATE", "${", span)
        else:
            self._check_escapes(match.group(), position)
            self._emit("TEXT", match.group(), span)
        return end

    def _check_escapes(self, text: str, position: int) -> None:
        for escape in _ESCAPE.finditer(text):
            if escape[1] not in '"\\nt$':
                at = self._span(position + escape.start(), position + escape.end())
                help_ = 'escapes are \\" \\\\ \\n \\t \\$; for a backslash write \\\\'
                self.diags.report("BC001", f"no escape `{escape[0]}`", at=at, help=help_)

    def _skip(self, text: str, start: int, end: int) -> None:
        newlines = text.count("\n", start, end)
        if not newlines:
            return
        self._end_of_line(start)
        self.line += newlines
        self.line_start = text.rfind("\n", start, end) + 1

    def _stray(self, text: str, position: int) -> int:
        match = _STRAY.match(text, position)
        assert match is not None, "spaces and known tokens were tried before"
        found, end = match.group(), match.end()
        span = self._span(position, end)
        self.repaired.add(self.line)
        if found.startswith("'") and len(found) > 1:
            help_ = f'write "{found[1:-1]}"'
            self.diags.report("BC001", "strings take double quotes", at=span, help=help_)
            self._emit("QUOTE", '"', span)
            self._emit("QUOTE", '"', span)
            return end
        self.diags.report("BC001", f"unexpected `{found}`", at=span, help=_stray_help(found))
        return end

    # ---------------------------------------------------------------- brackets

    def _open(self, kind: str, text: str, span: Span) -> None:
        if len(self.open) >= MAX_NESTING:
            message = f"brackets are nested deeper than {MAX_NESTING}"
            self.diags.report("BC001", message, at=span, help="name the inner parts with `let`")
            self.stopped = True
            return
        self._emit(kind, text, span)
        self.open.append(self.tokens[-1])

    def _close(self, kind: str, text: str, span: Span) -> None:
        wanted = _CLOSED_BY[kind]
        reachable = self._since_quote()
        if not any(token.type in wanted for token in reachable):
            self.repaired.add(span.start_line)
            message = f"unexpected `{text}`: nothing is open here that it could close"
            self.diags.report("BC001", message, at=span, help=f"remove this `{text}`")
            return
        while self.open[-1].type not in wanted:
            label = Label(span=span, text=f"`{text}` closes a bracket around it")
            self._unclosed(self.open[-1], before=label)
            self._synthesize(span)
        opener = self.open.pop()
        self._emit(kind, text, span)
        closer = self.tokens[-1]
        if self.misindented is None and closer.starts_line and closer.indent < opener.indent:
            self.misindented = (opener, closer)

    def _since_quote(self) -> list[Scanned]:
        reachable = []
        for token in reversed(self.open):
            if token.type == "QUOTE":
                break
            reachable.append(token)
        return reachable

    def _end_of_line(self, position: int) -> None:
        """Close what is open since the first quote of this line: a string ends on its line."""
        first = next((i for i, token in enumerate(self.open) if token.type == "QUOTE"), None)
        if first is None:
            return
        help_ = 'close the string with `"` on its line'
        message = 'this `"` is never closed'
        self.diags.report("BC002", message, at=self.open[first].span, help=help_)
        self.repaired.add(self.line)
        end = self._span(position, position)
        opened_at = self.line_start + self.open[first].span.start_column
        while len(self.open) > first:
            self._synthesize(end)
        swallowed = self.source.text[opened_at:position]
        while self.open and self.open[-1].span.start_line == self.line:
            closer = _TEXT[_CLOSER[self.open[-1].type]]
            _, found, swallowed = swallowed.partition(closer)
            if not found:
                return
            self._synthesize(end)  # its closer is in what the string took in

    def _close_at_end(self, position: int) -> None:
        if not self.open:
            return
        if self.misindented is not None:
            opener, closer = self.misindented
            text = f"this `{closer.text}` stands further left and closes it"
            self._unclosed(opener, before=Label(span=closer.span, text=text))
        else:
            for opener in self.open[:MAX_SYNTAX_ERRORS]:
                self._unclosed(opener, before=None)
        end = self._span(position, position)
        while self.open:
            self._synthesize(end)

    def _unclosed(self, opener: Scanned, *, before: Label | None) -> None:
        closer = _TEXT[_CLOSER[opener.type]]
        where = "" if before is None else f" before line {before.span.start_line}"
        if before is not None and before.span.start_line == opener.span.start_line:
            where = f" before column {before.span.start_column}"
        self.diags.report(
            "BC002",
            f"this `{opener.text}` is never closed",
            at=opener.span,
            secondary=() if before is None else (before,),
            help=f"close it with `{closer}`{where}",
        )
        line = opener.span.start_line
        self.repaired.add(line)
        self.first_unclosed_line = min(self.first_unclosed_line or line, line)

    def _synthesize(self, at: Span) -> None:
        opener = self.open.pop()
        kind = _CLOSER.get(opener.type, "QUOTE")
        self._emit(kind, _TEXT[kind], at)

    # ------------------------------------------------------------------ tokens

    def _emit(self, kind: str, text: str, span: Span) -> None:
        if span.start_line != self.indent_line:
            self.indent_line, self.indent = span.start_line, span.start_column
        self.tokens.append(Scanned(kind, text, span, len(self.open), self.indent))

    def _span(self, start: int, end: int) -> Span:
        offset = 1 - self.line_start
        if "\n" not in self.source.text[start:end]:
            return Span(
                file=self.source.name,
                start_line=self.line,
                start_column=start + offset,
                end_line=self.line,
                end_column=end + offset,
            )
        text = self.source.text
        return Span(
            file=self.source.name,
            start_line=self.line,
            start_column=start + offset,
            end_line=self.line + text.count("\n", start, end),
            end_column=end - text.rfind("\n", start, end),
        )


def _stray_help(found: str) -> str | None:
    if any(character in _TYPOGRAPHIC for character in found):
        return 'strings take straight double quotes: "..."'
    if found == "'":
        return 'strings take double quotes: "..."'
    if not found.isascii():
        return "names are ASCII: letters, digits, `_` and `-`; put other text in quotes"
    if found in "&|":
        return f"did you mean `{found * 2}`?"
    if found == "%":
        return "`%` follows a number: `6%`"
    return None
