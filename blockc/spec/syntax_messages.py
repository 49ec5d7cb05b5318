"""Say in words why a token cannot stand where it stands.

In: the tokens around the place where the parser is stuck. Out: a message, the span to show, and a
help. Known mistakes (a missing value, a comma between attributes, a word for `=`) are recognised
first; the general message names what was found and what could have come instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from blockc.diag import Span
from blockc.spec.scan import Scanned

Message: TypeAlias = tuple[str, Span, str | None]

_KEYWORDS = {"IMPORT", "VAR", "LET", "FOR", "IN", "AS", "TRUE", "FALSE", "NULL"}


@dataclass(frozen=True, slots=True)
class Stuck:
    """Where the parser is stuck: the terminals that may come, the tokens around ``position``."""

    expected: frozenset[str]
    tokens: list[Scanned]
    position: int
    end: Scanned

    def at(self, offset: int) -> Scanned:
        """Return the token ``offset`` after the one that does not fit."""
        index = self.position + offset
        return self.tokens[index] if 0 <= index < len(self.tokens) else self.end

    @property
    def value_is_missing(self) -> bool:
        """``x =`` and then, on a line of its own, ``y = 1``: `y` was taken for the value of `x`."""
        return (
            self.at(0).type in ("EQUAL", "LBRACE", "COLON")
            and self.at(-1).type == "NAME"
            and self.at(-1).starts_line
            and self.position >= 2
            and self.at(-2).type == "EQUAL"
        )


def explain(stuck: Stuck) -> Message:
    """Return the message for the token at which the parser is stuck."""
    found = stuck.at(0)
    for known in (_missing_value, _comma, _keyword, _colon, _statement, _dotted, _header):
        if (message := known(stuck)) is not None:
            return message
    return f"unexpected {_describe(found)}; expected {_expected(stuck)}", found.span, None


def _missing_value(stuck: Stuck) -> Message | None:
    if stuck.value_is_missing:
        name = stuck.at(-3).text
        return (
            "expected a value after `=`",
            stuck.at(-2).span,
            f"give `{name}` a value or remove it",
        )
    if stuck.at(-1).type == "EQUAL" and stuck.at(0).type in (
        "RBRACE",
        "EQUAL",
        "$END",
        "SEMICOLON",
    ):
        name = stuck.at(-2).text
        help_ = f"give `{name}` a value or remove it"
        if stuck.at(0).type == "EQUAL":
            help_ = "`==` compares; one `=` gives a value"
        return "expected a value after `=`", stuck.at(-1).span, help_
    return None


def _comma(stuck: Stuck) -> Message | None:
    found = stuck.at(0)
    if found.type == "COMMA" and "FOR" in stuck.expected:
        help_ = "attributes are separated by spaces or new lines; remove the comma"
        return "unexpected `,` between attributes", found.span, help_
    return None


def _keyword(stuck: Stuck) -> Message | None:
    found = stuck.at(0)
    if found.type in _KEYWORDS and stuck.expected == {"NAME"}:
        if found.starts_line:
            before = stuck.at(-1)
            return f"expected a name after `{before.text}`", before.span, None
        help_ = f"choose another name, such as `{found.text}_`"
        return f"`{found.text}` is a keyword and cannot be a name", found.span, help_
    if found.type == "EQUAL" and stuck.at(-1).type in _KEYWORDS:
        name = stuck.at(-1)
        return f"`{name.text}` is a keyword and cannot be a name", name.span, None
    return None


def _colon(stuck: Stuck) -> Message | None:
    """``rate: 8rps``, as YAML writes it."""
    before, colon, found = stuck.at(-2), stuck.at(-1), stuck.at(0)
    if colon.type != "COLON" or before.type != "NAME":
        return None
    if found.type in ("NUMBER", "QUANTITY", "LSQB", "LBRACE", "TRUE", "FALSE", "NULL", "MINUS"):
        return "expected `=`, found `:`", colon.span, f"write `{before.text} = {found.text}`"
    return None


def _statement(stuck: Stuck) -> Message | None:
    """Recognise a name that begins a statement and is not followed by what makes it one."""
    name, found = stuck.at(-1), stuck.at(0)
    if name.type != "NAME" or "EQUAL" not in stuck.expected or "LBRACE" not in stuck.expected:
        return None
    if found.type in ("NUMBER", "QUANTITY") and stuck.at(1).type in ("COLON", "LBRACE"):
        return _not_a_name(found)
    if found.type in ("NUMBER", "QUANTITY", "LSQB", "TRUE", "FALSE", "NULL"):
        help_ = f"write `{name.text} = {found.text}`"
        return f"expected `=` between `{name.text}` and its value", found.span, help_
    if found.text == "==":
        return "`==` compares; one `=` gives a value", found.span, f"write `{name.text} = ...`"
    if found.type == "DOT" and stuck.at(1).type == "NAME":
        help_ = f"write `{name.text} {{ {stuck.at(1).text} = ... }}`"
        return "an attribute is named inside its block", found.span, help_
    message = f"`{name.text}` alone is not a statement; found {_describe(found)}"
    help_ = f"write `{name.text} = value` for an attribute, `{name.text} {{ ... }}` for a block"
    return message, name.span, help_


def _dotted(stuck: Stuck) -> Message | None:
    found = stuck.at(0)
    if found.type in ("NUMBER", "QUANTITY") and stuck.at(-1).type == "DOT":
        return "a position is written in brackets", found.span, f"write `[{found.text}]`"
    return None


def _header(stuck: Stuck) -> Message | None:
    """Recognise a header without its braces, and a name that starts with a digit."""
    found = stuck.at(0)
    name_wanted = "NAME" in stuck.expected and not stuck.expected & {"FOR", "NUMBER"}
    if found.type in ("QUANTITY", "NUMBER") and name_wanted:
        return _not_a_name(found)
    body_wanted = "LBRACE" in stuck.expected and "RBRACE" not in stuck.expected
    if body_wanted and (found.starts_line or found.type in ("RBRACE", "$END")):
        before = stuck.at(-1).span
        return f"expected `{{` before {_describe(found)}", before, "a block needs `{ ... }`"
    return None


def _not_a_name(found: Scanned) -> Message:
    help_ = f'names start with a letter; or quote it: "{found.text}"'
    return f"`{found.text}` is not a name", found.span, help_


def _describe(token: Scanned) -> str:
    if token.type == "$END":
        return "end of file"
    if token.type in ("QUOTE", "TEXT", "INTERPOLATE"):
        return "string"
    if token.type in ("NUMBER", "QUANTITY"):
        return f"number `{token.text}`"
    return f"`{token.text}`"


def _expected(stuck: Stuck) -> str:
    expected = stuck.expected
    if "FOR" in expected:
        closing = ", or `}`" if "RBRACE" in expected else ""
        return "an attribute or a block" + closing
    if "NUMBER" in expected:
        return "a value"
    if expected == {"NAME"}:
        return "a name"
    marks = [text for name, text in _MARKS.items() if name in expected]
    if "NAME" in expected or "QUOTE" in expected:
        marks.insert(0, "a name" if "NAME" in expected else "a string")
    return " or ".join(marks) if marks else "something else"


_MARKS = {
    "EQUAL": "`=`",
    "LBRACE": "`{`",
    "COLON": "`:`",
    "COMMA": "`,`",
    "RPAR": "`)`",
    "RSQB": "`]`",
    "RBRACE": "`}`",
    "IN": "`in`",
    "AS": "`as`",
}
