"""`blockc simulate`: its table, its document, its files, and every way to ask it wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockc.cli import main
from blockc.plan import write_plan
from tests.plan.fleet import fleet_plan

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.0,37,14
2023-11-16 18:15:46.5,39,10
2023-11-16 18:15:47.0,500,12
"""
SPEC = """
base tiny : hf("./models/tiny") { }
finetune own : tiny { weights = "./own" }
cluster box { node local { device d0 : cpu { memory = 8MiB } } }
tenant acme { app chat { model = tiny  SLO  TRAFFIC }  app draft { model = own } }
tenant zoo { app law { model = own } }
EXPECT
"""


@pytest.fixture
def plan(tmp_path: Path) -> str:
    write_plan(fleet_plan(), tmp_path / "plan.json")
    return str(tmp_path / "plan.json")


@pytest.fixture
def trace(tmp_path: Path) -> str:
    (tmp_path / "trace.csv").write_text(TRACE)
    return str(tmp_path / "trace.csv")


def spec(tmp_path: Path, **parts: str) -> str:
    text = SPEC
    for name in ("SLO", "TRAFFIC", "EXPECT"):
        text = text.replace(name, parts.get(name, ""))
    (tmp_path / "fleet.blk").write_text(text)
    return str(tmp_path / "fleet.blk")


def test_a_trace_as_a_table(plan: str, trace: str, capsys) -> None:
    assert main(["simulate", plan, "--trace", trace]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("SIMULATED  ours on 1 device")
    assert "3 requests in 1 s" in out
    assert "1 request longer than its model or the KV cache: refused" in out
    assert [line.split()[0] for line in out.splitlines() if "/" in line.split(" ")[0]] == [
        "acme/chat",
        "acme/draft",
        "zoo/law",
    ]


def test_the_same_question_has_the_same_answer(plan: str, capsys) -> None:
    command = ["simulate", plan, "--rate", "30", "--duration", "2", "--prompt", "20", "--output", "9", "--json"]
    assert main(command) == 0
    once = capsys.readouterr().out
    assert main(command) == 0
    assert capsys.readouterr().out == once
    assert main([*command, "--seed", "1"]) == 0
    assert capsys.readouterr().out != once
    document = json.loads(once)
    assert document["ok"] is True
    total = document["fleets"][0]["reports"][0]["total"]
    assert total["requests"] > 20
    assert total["ttft"]["p50_s"] <= total["ttft"]["p95_s"] <= total["ttft"]["p99_s"]


def test_baselines_and_repetitions(plan: str, capsys) -> None:
    command = ["simulate", plan, "--rate", "30", "--duration", "1", "--prompt", "20", "--output", "9"]
    assert main([*command, "--baseline", "pm,ps", "--repeat", "3"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()[-4:]
    assert [line.split()[0] for line in lines[1:]] == ["ours", "pm", "ps"]
    assert all("+-" in line for line in lines[1:])


def test_costs_and_rates_scale(plan: str, capsys) -> None:
    def p50(*options: str) -> float:
        assert main(["simulate", plan, "--rate", "1", "--duration", "20", "--output", "9", "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)["fleets"][0]["figures"]["tpot_p50_s"]["mean"]

    assert p50("--cost-scale", "3") == pytest.approx(3 * p50(), rel=0.02)


def test_a_chrome_trace(plan: str, trace: str, tmp_path: Path, capsys) -> None:
    assert main(["simulate", plan, "--trace", trace, "--chrome-trace", str(tmp_path / "run.json")]) == 0
    events = json.loads((tmp_path / "run.json").read_text())
    assert {event["ph"] for event in events} == {"M", "X", "C", "b", "n", "e"}
    assert main(["simulate", plan, "--trace", trace, "--chrome-trace", str(tmp_path)]) == 1
    assert "BC003" in capsys.readouterr().err


def test_a_spec_gives_load_and_targets(plan: str, tmp_path: Path, capsys) -> None:
    parts = {"SLO": "slo { ttft_p95 = 5s }", "TRAFFIC": "traffic { rate = 20rps  prompt = 20tok  output = 8tok }"}
    assert main(["simulate", plan, "--spec", spec(tmp_path, **parts), "--duration", "2", "--json"]) == 0
    apps = json.loads(capsys.readouterr().out)["fleets"][0]["reports"][0]["apps"]
    assert [app["requests"] > 0 for app in apps] == [True, False, False]
    assert apps[0]["attainment"] == 1.0


@pytest.mark.parametrize(("target", "status"), [("5s", 0), ("1ns", 1)])
def test_expectations_gate(plan: str, tmp_path: Path, capsys, target: str, status: int) -> None:
    path = spec(tmp_path, SLO=f"slo {{ ttft_p95 = {target} }}", EXPECT="expect { slo_attainment = 99% }")
    command = ["simulate", plan, "--spec", path, "--rate", "20", "--duration", "1", "--prompt", "20", "--output", "5"]
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--fail-on", "expect"]) == status
    err = capsys.readouterr().err
    assert ("BC502" in err) == bool(status)
    if status:
        assert "fleet.blk:7:1" in err  # the expectation
        assert "0.0 % of" in err  # beside the app that is late
        assert "expected 99 %" in err


def test_an_expectation_that_nothing_can_meet(plan: str, tmp_path: Path, capsys) -> None:
    path = spec(tmp_path, EXPECT="expect { slo_attainment = 99% }")
    assert main(["simulate", plan, "--spec", path, "--rate", "9", "--duration", "1", "--fail-on", "expect"]) == 1
    assert "no request has a target" in capsys.readouterr().err


def test_memory_is_expected_of_the_plan(plan: str, tmp_path: Path, capsys) -> None:
    path = spec(tmp_path, EXPECT="expect { memory_below = 1KiB }")
    assert main(["simulate", plan, "--spec", path, "--rate", "9", "--duration", "1", "--fail-on", "expect"]) == 1
    assert "local/d0 takes" in capsys.readouterr().err


def test_load_without_a_place_is_left_out_of_the_specs_and_said(plan: str, trace: str, tmp_path: Path, capsys) -> None:
    """A given load is run as it is unless one asks for less; neither is silent."""
    made = fleet_plan()
    apps = (made.apps[0].model_copy(update={"served": 0.25}), *made.apps[1:])
    write_plan(made.model_copy(update={"apps": apps}), Path(plan))
    path = spec(
        tmp_path,
        SLO="slo { ttft_p95 = 1ns }",
        TRAFFIC="traffic { rate = 40rps  prompt = 20tok  output = 4tok }",
        EXPECT="expect { slo_attainment = 99% }",
    )
    own = ["simulate", plan, "--spec", path, "--duration", "2"]

    def reported(*command: str) -> dict:
        assert main([*command, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["fleets"][0]["reports"][0]

    every = reported(*own, "--no-shed")
    found = reported(*own)
    (shed,) = found["shed"]
    assert (shed["address"], shed["served"]) == ("acme/chat", 0.25)
    assert found["total"]["requests"] + shed["requests"] == every["total"]["requests"]
    assert 0 < found["total"]["requests"] < shed["requests"]
    assert every["shed"] == [{"address": "acme/chat", "served": 0.25, "requests": None}]
    assert main(own) == 0
    out = capsys.readouterr().out
    assert f"{shed['requests']} requests left out, for which the plan has no place (`overload = shed`)" in out
    assert f"{shed['requests']} (75%)" in next(line for line in out.splitlines() if line.startswith("acme/chat"))
    assert main([*own, "--fail-on", "expect"]) == 1
    assert "not judged, because the plan has no place for it: 75% of `acme/chat`" in capsys.readouterr().err

    given = ["simulate", plan, "--spec", path, "--trace", trace]
    assert main([*given, "--fail-on", "expect"]) == 1
    assert "no place for 75% of `acme/chat`, which was judged all the same" in capsys.readouterr().err
    assert main(given) == 0
    assert "no place for all load of 1 app (`overload = shed`), and all of it was run" in capsys.readouterr().out
    assert reported(*given)["total"]["requests"] == 3
    (shed,) = reported(*given, "--shed")["shed"]
    assert shed["requests"] is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "there is no load"),
        (["--rate", "1", "--baseline", "pm,mp"], "no baseline `mp`"),
        (["--rate", "1", "--fail-on", "expect"], "name it with --spec"),
        (["--rate", "1", "--fail-on", "rain", "--spec", "x.blk"], "`rain` is nothing to fail on"),
        (["--rate", "0"], "--rate"),
        (["--rate", "1", "--turns", "0.5"], "--turns"),
        (["--rate", "inf"], "'--rate'"),
        (["--rate", "1", "--duration", "inf"], "'--duration'"),
        (["--rate", "1", "--think", "inf", "--turns", "3"], "'--think'"),
        (["--rate", "1", "--cost-scale", "inf"], "'--cost-scale'"),
    ],
)
def test_usage(plan: str, capsys, options: list[str], words: str) -> None:
    assert main(["simulate", plan, *options]) == 64
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_wrong_files_are_diagnostics(plan: str, trace: str, tmp_path: Path, capsys) -> None:
    Path(trace).write_text(TRACE.replace("39", "thirty"))
    assert main(["simulate", plan, "--trace", trace]) == 1
    err = capsys.readouterr().err
    assert "error[BC503]" in err
    assert "trace.csv:3:1" in err
    assert "2023-11-16 18:15:46.5,thirty,10" in err
    assert main(["simulate", plan, "--trace", trace, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["diagnostics"][0]["primary"]["span"]["start"]["line"] == 3
    assert main(["simulate", str(tmp_path / "none.json"), "--rate", "1"]) == 1
    assert "BC003" in capsys.readouterr().err


def test_a_spec_of_another_plan(plan: str, tmp_path: Path, capsys) -> None:
    path = Path(spec(tmp_path))
    path.write_text(path.read_text().replace("app law", "app lore"))
    assert main(["simulate", plan, "--spec", str(path), "--rate", "1"]) == 1
    assert "the plan has no app `zoo/lore`" in capsys.readouterr().err


def test_no_traffic_no_load(plan: str, tmp_path: Path, capsys) -> None:
    assert main(["simulate", plan, "--spec", spec(tmp_path)]) == 1
    assert "BC108" in capsys.readouterr().err


def test_devices_that_nothing_is_known_of(tmp_path: Path, capsys) -> None:
    made = fleet_plan()
    device = made.devices[0].model_copy(update={"kind": "cuda"})
    write_plan(made.model_copy(update={"devices": (device,)}), tmp_path / "plan.json")
    assert main(["simulate", str(tmp_path / "plan.json"), "--rate", "1"]) == 1
    assert "BC504" in capsys.readouterr().err


def test_instances_that_go_out_of_service(plan: str, trace: str, capsys) -> None:
    name = fleet_plan().devices[0].address
    assert main(["simulate", plan, "--trace", trace, "--fail", f"{name}@0.5", "--json"]) == 0
    total = json.loads(capsys.readouterr().out)["fleets"][0]["reports"][0]["total"]
    assert (total["requests"], total["moved"]) == (3, 0)
    assert total["refused"] > 1  # there is no other instance
    assert main(["simulate", plan, "--trace", trace, "--drain", f"{name}@0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fleets"][0]["reports"][0]["total"]["refused"] == 1
    for wrong in ("n/none@1", f"{name}@soon"):
        assert main(["simulate", plan, "--trace", trace, "--drain", wrong]) == 1
        assert "BC101" in capsys.readouterr().err


def test_equal_devices_and_robustness_in_one_table(plan: str, capsys) -> None:
    command = ["simulate", plan, "--rate", "30", "--duration", "1", "--prompt", "20", "--output", "9"]
    assert main([*command, "--equal", "--baseline", "pm,random,blind", "--robust"]) == 0
    out = capsys.readouterr().out
    labels = ["ours", "ours, 1.5 x rates", "ours, 1.5 x costs", "ours, 1.5 x rates and 1.5 x costs", "pm", "random"]
    assert [line.split("  1  ")[0].strip() for line in out.splitlines()[-7:]] == [*labels, "blind"]


def test_several_processes_find_the_same(plan: str, capsys) -> None:
    command = ["simulate", plan, "--rate", "30", "--duration", "1", "--prompt", "20", "--output", "9", "--repeat", "3"]
    assert main([*command, "--json"]) == 0
    once = capsys.readouterr().out
    assert main([*command, "--json", "--jobs", "2"]) == 0
    assert capsys.readouterr().out == once


def test_random_placement_is_of_replicas(plan: str, capsys) -> None:
    assert main(["simulate", plan, "--rate", "3", "--baseline", "random"]) == 64
    assert "--equal" in capsys.readouterr().err
