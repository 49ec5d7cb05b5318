"""Every spec under `tests/errors/` raises exactly the diagnostics that are written on its lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockc.diag import CODES, Diagnostic, Diagnostics
from blockc.spec import load
from blockc.spec.weights import check_weights

ERRORS = Path(__file__).parent.parent / "errors"
FIXTURES = sorted(ERRORS.glob("*.blk"))

RAISED = {
    *("BC001", "BC002", "BC003", "BC101", "BC102", "BC103", "BC104", "BC105", "BC106", "BC107"),
    *("BC108", "BC109", "BC201", "BC203", "BC206", "BC208", "BC602", "BC801", "BC803", "BC804"),
}


def expected(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, code and a part of the message for each `#! BC101 part` of a fixture."""
    for number, line in enumerate(text.splitlines(), start=1):
        for note in line.split("#! ")[1:]:
            match = re.fullmatch(r"(BC\d{3}) (.*?)\s*", note)
            assert match, f"line {number}: {note}"
            yield number, match[1], match[2]


def found_in(path: Path) -> list[Diagnostic]:
    result = load(path, environ={})
    found = Diagnostics(items=list(result.diagnostics))
    if result.deployment is not None and re.match(r"BC20\d-(weights|index|pickle)", path.name):
        check_weights(result.deployment, found)
    return list(found)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_fixture_raises_what_its_lines_say(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    missing = list(expected(text))
    surplus = []
    for item in found_in(path):
        assert item.primary is not None, item.message
        line = item.primary.span.start_line
        for note in missing:
            if note[:2] == (line, item.code.id) and note[2] in item.message:
                missing.remove(note)
                break
        else:
            surplus.append((line, item.code.id, item.message))
    assert (surplus, missing) == ([], [])


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_fixture_is_named_after_a_code_that_it_raises(path: Path) -> None:
    code = path.stem.partition("-")[0]
    assert code in {item.code.id for item in found_in(path)}


def test_every_code_that_loading_raises_has_a_fixture() -> None:
    assert {path.stem.partition("-")[0] for path in FIXTURES} == RAISED
    assert set(CODES) >= RAISED


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_every_error_says_what_to_do(path: Path) -> None:
    for item in found_in(path):
        if item.code.id not in ("BC001", "BC104", "BC109", "BC102"):
            assert item.help, item.message
