"""Structured outputs as llguidance's grammars, and the limits they are held to, in server and engine alike.

In: a JSON schema, a regular expression, a list of texts or a grammar in Lark's form. Out: one grammar as text, or why
it is refused. Invariant: nothing in a schema is passed over: a keyword that cannot be enforced is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

__all__ = ["LIMITS", "GrammarError", "LLMatcher", "LLTokenizer", "choice", "json_schema", "lark", "regex", "tagged"]

MAX_GRAMMAR_CHARS = 1 << 16
# At most some 150 ms to build one, and 20 ms a mask. Errors do not show the state of a parser: it holds outputs.
LIMITS = LLParserLimits(max_grammar_size=50_000, max_lexer_states=50_000, verbose_errors=False)
# A blank or a new line with its indentation: as JSON is printed. Let free, small models that are not used to JSON fill
# their answers with blanks (the samples at temperature 1.2: 9 of 14 were cut off after 300 tokens).
_JSON_OPTIONS: Any = {"whitespace_pattern": r" |\n[ \t]{0,24}", "lenient": False}


class GrammarError(Exception):
    """Why something is not taken for a grammar, in one line."""


def json_schema(schema: Any) -> str:
    """Return the grammar of JSON that a schema (an object, or true) describes. Raises `GrammarError`."""
    text = json.dumps(schema)
    _check_length(text)
    if isinstance(schema, bool):
        text = "{}" if schema else '{"enum": []}'
    try:
        grammar = LLMatcher.grammar_from_json_schema(text, overrides=_JSON_OPTIONS)
    except ValueError as error:
        raise GrammarError(_one_line(str(error))) from None
    return _checked(grammar)


def regex(pattern: str) -> str:
    """Return the grammar of texts that a pattern (Rust's syntax) matches as a whole. Raises `GrammarError`."""
    _check_length(pattern)
    return _checked(LLMatcher.grammar_from_regex(pattern))


def choice(texts: Sequence[str]) -> str:
    """Return the grammar of exactly these texts. Raises `GrammarError`."""
    return lark("start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts))


def lark(source: str) -> str:
    """Return a grammar given in llguidance's form of Lark. Raises `GrammarError`."""
    _check_length(source)
    return _checked(LLMatcher.grammar_from_lark(source))


def tagged(schema: Any, opening: str, closing: str, *, more: int) -> str:
    """Return the grammar of JSON between two marks, and of up to ``more`` of them behind it. Raises `GrammarError`."""
    json_schema(schema)  # as an error of the schema, not of what stands around it
    inner = json.dumps({**schema, "x-guidance": _JSON_OPTIONS})
    rest = f' ("\\n" call){{0,{more}}}' if more else ""
    marks = json.dumps(opening + "\n"), json.dumps("\n" + closing)
    return lark(f"start: call{rest}\ncall: {marks[0]} body {marks[1]}\nbody: %json {inner}\n")


def _check_length(text: str) -> None:
    if len(text) > MAX_GRAMMAR_CHARS:
        raise GrammarError(f"it has {len(text)} characters; {MAX_GRAMMAR_CHARS} are allowed")


def _checked(grammar: str) -> str:
    if message := LLMatcher.validate_grammar(grammar, limits=LIMITS):
        raise GrammarError(_one_line(message))
    return grammar


def _one_line(message: str) -> str:
    return " ".join(message.split())[:300]
