"""How diagnostics look: golden files for the text, rules for what must never be shown."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from blockc.diag import CODES, Diagnostic, DiagnosticError, Diagnostics, Label, Span
from blockc.diag.explanations import explained, explanation
from blockc.diag.json import diagnostics_document
from blockc.diag.render import render, render_all, summary, wants_colour
from blockc.diag.suppress import Suppression, report_unused, suppress
from blockc.spec import load

ERRORS = Path(__file__).parent.parent / "errors"

FLEET = """\
base tiny : hf("./models/tiny") {
  dtype = bf16
}

cluster box { node local { device d0 : cpu { memory = 16GiB } } }
"""


def at(line: int, start: int, end: int, *, file: str = "fleet.blk") -> Span:
    return Span(file=file, start_line=line, start_column=start, end_line=line, end_column=end)


def infeasible() -> Diagnostic:
    return Diagnostics().report(
        "BC401",
        "plan needs at least 21.3 GiB, devices offer 14.0 GiB",
        at=at(5, 1, 14),
        label="1 device: 16 GiB - 2 GiB reserve",
        secondary=(Label(span=at(1, 6, 10), text="2.05 GiB, shared by 4 apps"),),
        notes=("weights 20.1 GiB, KV cache 1.2 GiB",),
        help="smallest relaxation: `traffic.rate` of acme/chat 8rps -> 4.6rps\nnext: memory = 24GiB",
    )


def test_several_spans(golden: Callable[[str, str], None]) -> None:
    golden("diag/infeasible.txt", render(infeasible(), {"fleet.blk": FLEET}))


def test_colour(golden: Callable[[str, str], None]) -> None:
    golden("diag/infeasible-colour.txt", render(infeasible(), {"fleet.blk": FLEET}, colour=True))


@pytest.mark.parametrize("path", sorted(ERRORS.glob("*.blk")), ids=lambda path: path.stem)
def test_errors(path: Path, golden: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ERRORS)
    result = load(Path(path.name), environ={})
    golden(f"diag/{path.stem}.txt", render_all(result.diagnostics, result.sources))


def test_two_labels_on_one_line_and_a_second_file() -> None:
    item = Diagnostics().report(
        "BC106",
        "twice",
        at=at(1, 6, 10),
        secondary=(
            Label(span=at(1, 1, 5), text="kind"),
            Label(span=at(2, 1, 4, file="other.blk"), text="first"),
        ),
    )
    text = render(item, {"fleet.blk": FLEET, "other.blk": "a\nabc\n"})
    assert text.splitlines() == [
        "error[BC106]: twice   (duplicate-address)",
        " --> fleet.blk:1:6",
        "  |",
        '1 | base tiny : hf("./models/tiny") {',
        "  |      ^^^^",
        "  | ---- kind",
        " ::: other.blk:2:1",
        "  |",
        "2 | abc",
        "  | --- first",
        "  |",
    ]


def test_without_a_source_the_place_is_named() -> None:
    text = render(infeasible(), {})
    assert " --> fleet.blk:5:1" in text
    assert "1 device: 16 GiB - 2 GiB reserve" in text


def test_a_span_beyond_the_text_is_no_problem() -> None:
    item = Diagnostics().report("BC101", "gone", at=at(99, 7, 9))
    assert "fleet.blk:99:7" in render(item, {"fleet.blk": FLEET})
    item = Diagnostics().report("BC101", "gone", at=at(1, 700, 900))
    assert "^" in render(item, {"fleet.blk": FLEET})


def test_wide_characters_and_tabs_keep_the_marks_in_place() -> None:
    text = render(Diagnostics().report("BC101", "x", at=at(1, 4, 5)), {"fleet.blk": "\t\u65e5\u672cx\n"})
    line, marks = text.splitlines()[3:5]
    assert line == "1 |     \u65e5\u672cx"
    assert marks == "  | " + " " * 8 + "^"


def test_control_characters_do_not_reach_the_terminal() -> None:
    evil = "a\x1b[31m\u202eb\r"
    item = Diagnostics().report("BC101", evil, at=at(1, 1, 2), label=evil, help=evil, notes=(evil,))
    text = render(item, {"fleet.blk": evil})
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_long_line_is_cut_around_the_place() -> None:
    line = "x" * 5000 + "HERE" + "y" * 5000
    text = render(Diagnostics().report("BC101", "m", at=at(1, 5001, 5005)), {"fleet.blk": line})
    snippet, marks = text.splitlines()[3:5]
    assert len(snippet) < 200
    assert snippet[marks.index("^") :][:4] == "HERE"


def test_a_secret_is_not_repeated() -> None:
    item = Diagnostics().report("BC602", "a secret", at=at(1, 5, 10))
    assert "S3CRT" not in render(item, {"fleet.blk": "k = S3CRT x"})


def test_summary() -> None:
    diags = Diagnostics()
    assert summary(diags) == ""
    diags.report("BC101", "a")
    diags.report("BC804", "b")
    diags.report("BC804", "c")
    assert summary(diags) == "1 error, 2 warnings"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_only_on_a_terminal() -> None:
    assert wants_colour(Terminal(), {})
    assert not wants_colour(Terminal(), {"NO_COLOR": "1"})
    assert not wants_colour(Terminal(), {"TERM": "dumb"})
    assert not wants_colour(io.StringIO(), {})


def test_json() -> None:
    (document,) = diagnostics_document([infeasible()])
    assert document["code"] == "BC401"
    assert document["severity"] == "error"
    assert document["primary"]["span"]["start"] == {"line": 5, "column": 1}
    assert document["secondary"][0]["text"] == "2.05 GiB, shared by 4 apps"


def test_every_code_is_explained() -> None:
    assert explained() == set(CODES)
    assert all(explanation(code) for code in CODES)


def test_errors_raise_and_warnings_do_not() -> None:
    diags = Diagnostics()
    diags.report("BC804", "w")
    diags.raise_if_errors()
    diags.report("BC101", "e")
    with pytest.raises(DiagnosticError, match="BC101: e"):
        diags.raise_if_errors()


def test_suppressions() -> None:
    diags = Diagnostics()
    diags.report("BC804", "here", at=at(1, 1, 2))
    diags.report("BC804", "there", at=at(2, 1, 2))
    diags.report("BC101", "an error", at=at(1, 1, 2))
    allow = [Suppression(code=code, span=at(1, 9, 20)) for code in ("BC804", "BC101", "BC301", "BC801")]
    remaining = suppress(diags, allow)
    assert [item.message for item in remaining] == ["there", "an error"]
    report_unused(diags, allow, judged=frozenset({"BC801", "BC804"}), diags=(unused := Diagnostics()))
    assert [item.message for item in unused] == [
        "BC101 is an error; only warnings can be allowed",
        "nothing on this line raises BC801",
    ]
