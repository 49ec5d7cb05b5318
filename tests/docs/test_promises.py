"""The table of promises is that of the figures that are kept, and no row of it is without one."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.promises import ROWS, documented, updated

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "cpu-promises.json"


def test_the_document_shows_the_figures_that_are_kept() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    assert documented(text, results["lines"]) == text
    assert set(ROWS) - {line["row"] for line in results["lines"]} <= {"plan swap"}
    for line in results["lines"]:
        assert results["runs"][line["run"]]["commit"]


def test_new_figures_take_the_place_of_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    one = {"row": "drain", "what": "a", "promised": "p", "measured": "1", "kept": True}
    two = {**one, "row": "load", "what": "b"}
    path.write_text(json.dumps(updated(path, {"commit": "old"}, [one, two])))
    found = updated(path, {"commit": "new"}, [{**one, "measured": "2"}])
    assert [(line["what"], line["measured"], found["runs"][line["run"]]["commit"]) for line in found["lines"]] == [
        ("b", "1", "old"),
        ("a", "2", "new"),
    ]
    path.write_text(json.dumps(found))
    found = updated(path, {"commit": "newest"}, [{**two, "measured": "3"}])
    assert [run["commit"] for run in found["runs"]] == ["new", "newest"], "runs of which nothing is left are gone"
