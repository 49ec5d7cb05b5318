"""The parser tables and the terminals of the grammar file, built once a process.

Invariant: nothing is read from a cache on disk (lark's cache is pickled); building takes about 60
ms.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from lark import Lark

from blockc.spec.build import BuildTree
from blockc_grammar import grammar_text

_MODAL = ("QUOTE", "INTERPOLATE", "TEXT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """What scanning and parsing need.

    ``code`` matches one token outside of quotes, ``quoted`` one inside; a match's ``lastgroup`` is
    the name of the terminal. ``keywords`` maps the text of a keyword to the name of its terminal.
    """

    parser: Lark
    code: re.Pattern[str]
    quoted: re.Pattern[str]
    keywords: dict[str, str]


@cache
def load_grammar() -> Grammar:
    """Build the tables from the grammar file."""
    parser = Lark(
        grammar_text(),
        parser="lalr",
        lexer="basic",
        start="file",
        keep_all_tokens=True,
        maybe_placeholders=False,
        transformer=BuildTree(),
    )
    patterns = {terminal.name: terminal.pattern for terminal in parser.terminals}
    fixed = {p.value: name for name, p in patterns.items() if p.type == "str" and name not in _MODAL}
    keywords = {text: name for text, name in fixed.items() if text.isalpha()}
    marks = sorted((text for text in fixed if not text.isalpha()), key=len, reverse=True)
    words = ("SPACE", "COMMENT", "NAME", "QUANTITY", "NUMBER", "QUOTE")
    code = [f"(?P<{name}>{patterns[name].to_regexp()})" for name in words]
    code += [f"(?P<{fixed[text]}>{re.escape(text)})" for text in marks]
    quoted = [f"(?P<{name}>{patterns[name].to_regexp()})" for name in _MODAL]
    return Grammar(
        parser=parser,
        code=re.compile("|".join(code)),
        quoted=re.compile("|".join(quoted)),
        keywords=keywords,
    )
