"""Parse one source into its syntax tree.

In: a source. Out: a :class:`~blockc.spec.syntax.File`, or None if any of its text is not a spec.
After a syntax error the parser returns to the innermost list of statements and goes on at the next
one, so that a run reports several. Invariant: every text gives a file or diagnostics, never an
exception.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lark.exceptions import UnexpectedToken
from lark.parsers.lalr_analysis import Shift
from lark.parsers.lalr_interactive_parser import InteractiveParser
from lark.parsers.lalr_parser_state import ParserState

from blockc.diag import Diagnostics, Span
from blockc.spec.grammar import load_grammar
from blockc.spec.scan import MAX_SYNTAX_ERRORS, Scanned, Scanner, Tokens
from blockc.spec.source import Source
from blockc.spec.syntax import File
from blockc.spec.syntax_messages import Stuck, explain

_STATEMENT_STARTS = frozenset({"NAME", "IMPORT", "VAR", "LET", "FOR"})
_OPENERS = frozenset({"LBRACE", "LPAR", "LSQB", "INTERPOLATE"})


def parse(source: Source, diags: Diagnostics) -> File | None:
    """Parse ``source``; everything that is wrong with its form goes to ``diags``."""
    with _without_collections():
        return _parse(source, diags)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Tokens and trees have no cycles; looking for some takes a third of the time (2.7 s of a megabyte, not 1.6)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _parse(source: Source, diags: Diagnostics) -> File | None:
    grammar = load_grammar()
    before = len(diags)
    scanned = Scanner(
        source=source,
        code=grammar.code,
        quoted=grammar.quoted,
        keywords=grammar.keywords,
        diags=diags,
    ).run()
    if scanned is None:
        return None
    statements = _Parse(grammar.parser.parse_interactive(""), scanned, source, diags).run()
    if statements is None or len(diags) > before:
        return None
    return File(name=source.name, statements=statements, comments=scanned.comments)


class _Parse:
    """One run of the parser over the tokens of a file."""

    def __init__(self, parser: InteractiveParser, scanned: Tokens, source: Source, diags: Diagnostics) -> None:
        self.state: ParserState[Any] = parser.parser_state
        self.scanned = scanned
        self.tokens = scanned.items
        self.diags = diags
        self.errors = 0
        self.end = _end_token(source, self.tokens)

    def run(self) -> Any:
        """Feed all tokens; return the statements of the file, or None after the last error."""
        position, count = 0, len(self.tokens)
        feed, tokens = self.state.feed_token, self.tokens
        while self.errors < MAX_SYNTAX_ERRORS:
            try:
                while position < count:
                    feed(tokens[position])  # type: ignore[arg-type]  # lark reads only `type`
                    position += 1
                return feed(self.end, True)  # type: ignore[arg-type]
            except UnexpectedToken:
                self.errors += 1
                stuck = Stuck(self._expected(), tokens, position, self.end)
                self._report(stuck)
                if position == count:
                    return None
                position = self._recover(position, stuck)
        return None

    def _expected(self) -> frozenset[str]:
        """Return the names of the terminals that may come next.

        The table alone says too much: a state may reduce on a terminal that nothing around it takes.
        """
        states = self.state.parse_conf.parse_table.states
        stack = self.state.state_stack
        return frozenset(name for name in states[stack[-1]] if _accepts(states, stack, name))

    def _report(self, stuck: Stuck) -> None:
        message, span, help_ = explain(stuck)
        doubtful = self.scanned.first_unclosed_line
        if doubtful is not None and span.start_line >= doubtful:
            return
        if span.start_line in self.scanned.repaired_lines:
            return
        self.diags.report("BC001", message, at=span, help=help_)

    def _recover(self, position: int, stuck: Stuck) -> int:
        """Drop the broken statement; return the position of the token at which to go on."""
        self._back_to_statements()
        depth = sum(isinstance(value, Scanned) and value.type in _OPENERS for value in self.state.value_stack)
        if stuck.value_is_missing:
            return position - 1  # the name before belongs to the next statement
        start = position
        while position < len(self.tokens):
            token = self.tokens[position]
            if token.depth < depth:
                return position  # the brace that closes the list of statements
            starts = token.type in _STATEMENT_STARTS and token.depth == depth
            assigns = position > start and self._is_assignment(position)
            if starts and (token.starts_line or assigns):
                return position
            position += 1
        return position

    def _is_assignment(self, position: int) -> bool:
        following = self.tokens[position + 1 : position + 2]
        return bool(following) and following[0].type == "EQUAL"

    def _back_to_statements(self) -> None:
        """Pop to the innermost state in which a statement may start: one that shifts `for`."""
        states = self.state.parse_conf.parse_table.states
        while not _shifts_for(states[self.state.state_stack[-1]]):
            self.state.state_stack.pop()
            self.state.value_stack.pop()


def _accepts(states: Any, stack: list[Any], terminal: str) -> bool:
    """Return whether ``terminal`` can be shifted after any reductions that it calls for."""
    stack = list(stack)
    while (action := states[stack[-1]].get(terminal)) is not None:
        kind, target = action
        if kind is Shift:
            return True
        if size := len(target.expansion):
            del stack[-size:]
        stack.append(states[stack[-1]][target.origin.name][1])
    return False


def _shifts_for(actions: Any) -> bool:
    action = actions.get("FOR")
    return action is not None and action[0] is Shift


def _end_token(source: Source, tokens: list[Scanned]) -> Scanned:
    """Return the token that stands for the end of the text, placed after the last real one."""
    if not tokens:
        return Scanned("$END", "", source.start, 0, 1)
    last = tokens[-1].span
    span = Span(
        file=last.file,
        start_line=last.end_line,
        start_column=last.end_column,
        end_line=last.end_line,
        end_column=last.end_column,
    )
    return Scanned("$END", "", span, 0, 1)
