"""docs/language.md says what the schema says, and its examples parse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from blockc.diag import Diagnostics
from blockc.spec.parser import parse
from blockc.spec.reference import kinds_markdown, units_markdown
from blockc.spec.source import Source
from blockc.spec.variables import VAR_TYPES
from tests.spec.texts import SPECS

DOCS = Path(__file__).parent.parent.parent / "docs" / "language.md"


def small() -> str:
    text = (SPECS / "small.blk").read_text(encoding="utf-8")
    return f"```blk\n{text[text.index('blockc {') :]}```\n"


@pytest.mark.parametrize(
    ("section", "wanted"), [("small", small()), ("units", units_markdown()), ("kinds", kinds_markdown())]
)
def test_generated_sections_are_up_to_date(section: str, wanted: str, request: pytest.FixtureRequest) -> None:
    text = DOCS.read_text(encoding="utf-8")
    pattern = re.compile(f"(<!-- {section} -->\n)(.*?)(<!-- /{section} -->)", re.DOTALL)
    if request.config.getoption("--update-golden"):
        DOCS.write_text(pattern.sub(lambda m: m[1] + wanted + m[3], text), encoding="utf-8")
        return
    match = pattern.search(text)
    assert match is not None
    assert match[2] == wanted, "run pytest with --update-golden"


def test_examples_parse() -> None:
    examples = re.findall(r"```blk\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) >= 5
    for example in examples:
        diags = Diagnostics()
        parse(Source(name="example", text=example), diags)
        assert not list(diags), example


def test_types_of_variables_are_named() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in VAR_TYPES)
