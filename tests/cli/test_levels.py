"""`blockc viz --show` and `blockc compile --dump-after`: choices, and what is wrong with some."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockc.cli import main
from blockc.cli.dump import stage_dumps
from blockc.diag import DiagnosticError
from blockc.plan import load_plan
from blockc.zoo import Zoo, publish
from tests.zoo.plans import stored_plan


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    zoo = Zoo(tmp_path / "zoo", create=True)
    publish(stored_plan(zoo), tmp_path / "plan.json", zoo)
    return tmp_path / "plan.json"


def test_every_level(plan: Path, capsys) -> None:
    assert main(["viz", str(plan), "--show", "all"]) == 0
    out = capsys.readouterr().out
    heads = [line.partition("  (")[0] for line in out.splitlines() if line and line.partition(" ")[0].isupper()]
    assert heads[:2] == ["DEVICES", "SEGMENTS"], "the plan comes first"
    assert set(heads) >= {"PATHS", "CHAINS", "GRAPH", "STRUCTURES", "KV GROUPS"}
    assert main(["viz", str(plan), "--show", "structures"]) == 0
    alone = capsys.readouterr().out
    assert alone.startswith("STRUCTURES")
    assert out.endswith(alone)


def test_sides_come_from_the_zoo(plan: Path, tmp_path: Path, capsys) -> None:
    assert main(["viz", str(plan), "--show", "chains"]) == 0
    assert "side 1 q: rank 8 x 2 (a " in capsys.readouterr().out
    (tmp_path / "zoo").rename(tmp_path / "away")
    assert main(["viz", str(plan), "--show", "chains"]) == 0
    assert "not shown: no zoo here" in capsys.readouterr().out
    assert main(["viz", str(plan), "--show", "chains", "--zoo", str(tmp_path / "zoo")]) == 1
    assert "BC904" in capsys.readouterr().err


def test_levels_as_one_document(plan: Path, capsys) -> None:
    assert main(["viz", str(plan), "--show", "all", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    loaded = load_plan(plan)
    assert document["structures"] == loaded.structures
    assert document["blocks"].keys() == loaded.blocks.keys()
    assert [chain["digest"] for chain in document["chains"]] == [chain.digest for chain in loaded.chains]
    assert document["sides"].keys() == {chain.sides for chain in loaded.chains if chain.sides}
    assert main(["viz", str(plan), "--json"]) == 0
    assert "structures" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["viz", "plan.json", "--show", "blocks"], "plan, segments, chains, graph, structures, and all"),
        (
            ["compile", "a.blk", "--dump-after", "parse"],
            "read, trace, tune, share, merge, quantize, unify, place, lower, and all",
        ),
        (["compile", "a.blk", "--dump-after", "all", "--json"], "--dump-to DIR"),
        (["compile", "a.blk", "--dump-to", "dumps"], "--dump-after"),
    ],
)
def test_usage(arguments: list[str], said: str, capsys) -> None:
    assert main(arguments) == 64
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_dumps_go_to_files_or_say_why_not(tmp_path: Path) -> None:
    on_result = stage_dumps(["read"], tmp_path / "deep" / "er", as_json=True)
    on_result("read", {})
    on_result("trace", {})
    (written,) = (tmp_path / "deep" / "er").iterdir()
    assert (written.name, written.read_text()) == ("1-read.txt", "MODELS  (0 models)\n")
    with pytest.raises(DiagnosticError, match=r"BC003.*cannot write"):
        stage_dumps(["read"], written, as_json=False)("read", {})


def test_formats(plan: Path, tmp_path: Path, capsys) -> None:
    assert main(["viz", str(plan), "--format", "html", "-o", str(tmp_path / "plan.html")]) == 0
    page = (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert capsys.readouterr().out == ""
    assert main(["viz", str(plan), "--format", "svg"]) == 0
    assert capsys.readouterr().out.startswith("<svg ")
    assert main(["viz", str(plan), "--format", "mermaid"]) == 0
    assert capsys.readouterr().out.startswith("flowchart LR\n")
    assert main(["viz", str(plan), "--against", str(plan)]) == 0
    assert "no app changes" in capsys.readouterr().out
    assert main(["viz", str(plan), "--format", "svg", "-o", str(tmp_path / "no" / "where.svg")]) == 1
    assert "BC003" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--format", "html", "--show", "chains"],
        ["--format", "svg", "--json"],
        ["--format", "svg", "--against", "PLAN"],
        ["--json", "--against", "PLAN"],
        ["--json", "-o", "x"],
        ["--format", "pdf"],
    ],
)
def test_what_does_not_go_together(plan: Path, arguments: list[str], capsys) -> None:
    assert main(["viz", str(plan), *(str(plan) if word == "PLAN" else word for word in arguments)]) == 64
    assert capsys.readouterr().out == ""
