"""Form: what parses, and how what does not is reported."""

from __future__ import annotations

import logging
import time

import lark
import pytest

from blockc.diag import Diagnostics
from blockc.spec import syntax
from blockc.spec.parser import parse
from blockc.spec.scan import MAX_NESTING, MAX_SYNTAX_ERRORS
from blockc.spec.source import MAX_BYTES, Source, decode_source
from blockc_grammar import grammar_text
from tests.conftest import Promised


def parsed(text: str) -> tuple[syntax.File | None, Diagnostics]:
    diags = Diagnostics()
    return parse(Source(name="x.blk", text=text), diags), diags


def good(text: str) -> tuple[syntax.Statement, ...]:
    file, diags = parsed(text)
    assert file is not None, list(diags)
    return file.statements


def value(text: str) -> syntax.Expr:
    (statement,) = good(f"x = {text}")
    assert isinstance(statement, syntax.Attribute)
    return statement.value


def test_grammar_has_no_conflicts(caplog: pytest.LogCaptureFixture) -> None:
    # lark raises on reduce/reduce conflicts; shift/reduce ones it settles itself and only logs.
    lark.logger.setLevel(logging.DEBUG)
    with caplog.at_level(logging.DEBUG, logger=lark.logger.name):
        lark.Lark(grammar_text(), parser="lalr", lexer="basic", start="file", debug=True)
    assert "conflict" not in caplog.text.lower()


def test_the_conflict_check_would_notice_one(caplog: pytest.LogCaptureFixture) -> None:
    ambiguous = 'file: _e\n_e: _e "+" _e | "1"'
    lark.logger.setLevel(logging.DEBUG)
    with caplog.at_level(logging.DEBUG, logger=lark.logger.name):
        lark.Lark(ambiguous, parser="lalr", lexer="basic", start="file", debug=True)
    assert "conflict" in caplog.text.lower()


def test_attributes_need_no_separator() -> None:
    names = [s.name.text for s in good("a = 1 b = c d = [1] e = f(1); g = 2\nh = 3") if isinstance(s, syntax.Attribute)]
    assert names == ["a", "b", "d", "e", "g", "h"]


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "8rps",
        "4Ktok/s",
        "99%",
        "0.5s",
        "true",
        "null",
        '""',
        '"a${b}c"',
        "[]",
        "[1, 2,]",
        "{}",
    ],
)
def test_literals(text: str) -> None:
    assert value(text).span.start_column == 5
    assert value(text).span.end_column == 5 + len(text)


def test_names_may_contain_a_hyphen_and_subtraction_needs_spaces() -> None:
    assert isinstance(value("a-b"), syntax.Reference)
    assert isinstance(value("a - b"), syntax.Binary)


def test_a_unit_with_a_slash_is_one_word_and_a_division_is_not() -> None:
    assert isinstance(value("4Ktok/s"), syntax.Number)
    assert isinstance(value("120/n"), syntax.Binary)
    assert isinstance(value("16GiB/2"), syntax.Binary)


def test_precedence_is_flat_per_level() -> None:
    expr = value("1 + 2 * 3 - 4")
    assert isinstance(expr, syntax.Binary)
    assert expr.operators == ("+", "-")
    assert isinstance(expr.operands[1], syntax.Binary)


def test_interpolation_may_hold_quotes() -> None:
    expr = value('"a${b["c"]}d${e}"')
    assert isinstance(expr, syntax.String)
    assert [type(part).__name__ for part in expr.parts] == ["str", "Reference", "str", "Reference"]


def test_escapes() -> None:
    expr = value(r'"a\"b\\c\nd\te\${f}"')
    assert isinstance(expr, syntax.String)
    assert expr.parts == ('a"b\\c\nd\te${f}',)


def test_block_header_span_and_parts() -> None:
    (block,) = good('finetune "a" : tiny {\n}')
    assert isinstance(block, syntax.Block)
    assert (block.header.start_column, block.header.end_column) == (1, 20)
    assert block.span.end_line == 2


def test_comments_are_kept() -> None:
    file, _ = parsed("# one\na = 1 // two\n/* three\n */ b = 2")
    assert file is not None
    assert [comment.text for comment in file.comments] == ["# one", "// two", "/* three\n */"]
    last = file.statements[-1]
    assert (last.span.start_line, last.span.start_column) == (4, 5)


def test_windows_line_ends() -> None:
    statements = good("a = 1\r\nb = 2\r\n")
    assert statements[1].span.start_line == 2
    assert statements[1].span.start_column == 1


def test_several_errors_are_reported_in_one_run() -> None:
    _, diags = parsed("a {\n  b 1\n  c = \n}\nd e f\ng = [1 2]\n")
    assert [item.primary.span.start_line for item in diags if item.primary] == [2, 3, 5, 6]


def test_errors_stop_after_some() -> None:
    _, diags = parsed("a b c\n" * 1000)
    assert len(diags) == MAX_SYNTAX_ERRORS


@pytest.mark.promise("specs")
def test_deep_nesting_is_a_diagnostic(promised: Promised) -> None:
    for opener, closer in ("[]", "()", ("a {", "}")):
        file, diags = parsed("x = " * (opener != "a {") + opener * 10_000 + closer * 10_000)
        assert file is None
        assert [item.code.id for item in diags] == ["BC001"]
    assert parsed("x = " + "[" * MAX_NESTING + "]" * MAX_NESTING)[0] is not None
    promised("10,000 nested brackets", "a diagnostic with a span", "BC001, of three kinds of brackets", kept=True)


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "1+" * 50_000 + "1",
        "x = " + "-" * 50_000 + "1",
        "x = " + "a." * 50_000 + "b",
        'x = "' + "${" * 50_000,
        '"' * 50_001,
        "}" * 50_000,
        "/*" * 50_000,
        "\\" * 50_000,
    ],
    ids=["sum", "signs", "members", "interpolations", "quotes", "closers", "comments", "strays"],
)
def test_long_and_flat_is_quick_and_never_raises(text: str) -> None:
    start = time.perf_counter()
    parsed(text)
    assert time.perf_counter() - start < 20


@pytest.mark.promise("specs")
def test_a_megabyte_is_parsed_within_seconds(promised: Promised) -> None:
    block = 'tenant "t1" { weight = 2  app chat { model = support  traffic { rate = 8rps } } }  # text\n'
    text = block * (1_000_000 // len(block))
    start, start_cpu = time.perf_counter(), time.process_time()
    assert len(good(text)) == text.count("\n")
    took_s, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    assert took_s < 20  # about 2 s on an idle core
    promised("1 MB of spec", "parsed in <= 2 s", f"{cpu_s:.1f} s of CPU, {took_s:.1f} s in all", kept=cpu_s <= 2)


@pytest.mark.parametrize(
    ("raw", "code", "line"),
    [
        (b"a = 1\nb = \xff\n", "BC001", 2),
        (b"a = 1\n\0", "BC001", 2),
        (b"\xef\xbb\xbfa = 1", "BC001", 1),
        (b"\xff\xfea\0", "BC003", None),
        (b" " * (MAX_BYTES + 1), "BC003", None),
    ],
    ids=["utf-8", "nul", "bom", "utf-16", "long"],
)
def test_bytes_that_are_no_text(raw: bytes, code: str, line: int | None) -> None:
    diags = Diagnostics()
    assert decode_source(raw, name="x.blk", diags=diags) is None
    (item,) = diags
    assert item.code.id == code
    assert (item.primary.span.start_line if item.primary else None) == line


@pytest.mark.parametrize(
    ("text", "message", "help_"),
    [
        ("a { x 8rps }", "expected `=` between `x` and its value", "write `x = 8rps`"),
        ("a { x = 1, y = 2 }", "unexpected `,` between attributes", "remove the comma"),
        ("a { x = }", "expected a value after `=`", "give `x` a value"),
        ("a { x == 3 }", "`==` compares", "write `x = ...`"),
        ("a b", "expected `{` before end of file", None),
        ("a b\nc { }", "expected", None),
        ("let for = 3", "`for` is a keyword", "`for_`"),
        ("let x 3", "expected `=`", None),
        ("for x { }", "expected `in`", None),
        ("x = “a”", "unexpected", "straight double quotes"),
        ("x = 'a'", "double quotes", 'write "a"'),
        ("x = a & b", "unexpected `&`", "`&&`"),
        ("a.b = 3", "an attribute is named inside its block", "write `a { b = ... }`"),
        ("x = a.0", "brackets", "`[0]`"),
        ("x = f(1", "this `(` is never closed", "close it"),
        ("{ }", "unexpected `{`", None),
    ],
)  # fmt: skip
def test_messages(text: str, message: str, help_: str | None) -> None:
    _, diags = parsed(text)
    item = diags.items[0]
    assert message in item.message
    if help_ is not None:
        assert help_ in (item.help or "")
