"""`expect { slo_attainment }` when a spec is compiled: judged under its own traffic, or said not to be."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from blockc.cli import main
from blockc.diag import Diagnostics
from blockc.simulate.judged import judge_expectations
from blockc.spec.deployment import Deployment, Expect, Slo, Traffic
from tests.plan.fleet import fleet_plan
from tests.support.deployments import deployment

PLAN = fleet_plan()
BUSY = Traffic(rate_rps=Fraction(20), prompt_tokens=20, output_tokens=8)
CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 256, "max_position_embeddings": 512,
}  # fmt: skip
SPEC = """
base tiny : hf("./tiny") { }
cluster c { node n { device d : l4_24g { } } }
profile p { slo { ttft_p95 = TARGET }  traffic { rate = 5rps  prompt = 40tok  output = 9tok } }
tenant acme { app chat : p { model = tiny } }
expect { slo_attainment = WANTED }
"""


def spec(tmp_path: Path, *, ttft_s: Fraction, traffic: Traffic = BUSY, wanted: str | None = "99/100") -> Deployment:
    plain = deployment(tmp_path, apps={"acme": {"chat": "base", "draft": "base"}, "zoo": {"law": "base"}})
    tenants = {
        name: replace(
            tenant,
            apps=tuple(replace(app, traffic=traffic, slo=Slo(targets_s={"ttft_p95": ttft_s})) for app in tenant.apps),
        )
        for name, tenant in plain.tenants.items()
    }
    attainment = None if wanted is None else Fraction(wanted)
    expect = Expect(memory_below_bytes=None, span=plain.apps[0].span, slo_attainment=attainment)
    return replace(plain, tenants=tenants, expect=(expect,))


def judged(own: Deployment, plan=PLAN) -> list[str]:
    diags = Diagnostics()
    judge_expectations(own, plan, diags=diags)
    return [item.code.id for item in diags]


@pytest.fixture(autouse=True)
def _short_loads(monkeypatch) -> None:
    monkeypatch.setattr("blockc.simulate.judged._REQUESTS", 600)


def test_an_expectation_holds_or_does_not(tmp_path: Path) -> None:
    assert judged(spec(tmp_path, ttft_s=Fraction(5))) == []
    assert judged(spec(tmp_path, ttft_s=Fraction(1, 10**7))) == ["BC502"]


def test_without_expectation_or_traffic_there_is_nothing_to_judge(tmp_path: Path) -> None:
    late = Fraction(1, 10**7)
    assert judged(spec(tmp_path, ttft_s=late, wanted=None)) == []
    assert judged(spec(tmp_path, ttft_s=late, traffic=Traffic())) == []


def test_devices_of_which_nothing_is_known_are_said(tmp_path: Path) -> None:
    device = PLAN.devices[0].model_copy(update={"kind": "cuda"})
    plan = PLAN.model_copy(update={"devices": (device,)})
    assert judged(spec(tmp_path, ttft_s=Fraction(5)), plan) == ["BC507"]


def test_a_great_load_is_judged_by_its_beginning(tmp_path: Path) -> None:
    fast = Traffic(rate_rps=Fraction(10**7), prompt_tokens=2, output_tokens=1)
    assert judged(spec(tmp_path, ttft_s=Fraction(1, 10**7), traffic=fast)) == ["BC502"]


def with_places(served: float):
    return PLAN.model_copy(update={"apps": tuple(app.model_copy(update={"served": served}) for app in PLAN.apps)})


def test_what_has_no_place_is_not_judged(tmp_path: Path) -> None:
    """Too much load for the plan, of which it promised two fifths: those are in time. Of all that it is not."""
    too_much = Traffic(rate_rps=Fraction(700), prompt_tokens=20, output_tokens=8)
    assert judged(spec(tmp_path, ttft_s=Fraction(1, 20), traffic=too_much)) == ["BC502"]
    assert judged(spec(tmp_path, ttft_s=Fraction(1, 20), traffic=too_much), with_places(0.4)) == []
    diags = Diagnostics()
    judge_expectations(spec(tmp_path, ttft_s=Fraction(1, 10**7), traffic=too_much), with_places(0.4), diags=diags)
    (item,) = diags
    assert item.code.id == "BC502"
    parts = "60% of `acme/chat`, 60% of `acme/draft`, 60% of `zoo/law`"
    assert f"not judged, because the plan has no place for it: {parts} (`overload = shed`)" in item.notes


def test_where_nothing_has_a_place_nothing_is_in_time(tmp_path: Path) -> None:
    diags = Diagnostics()
    judge_expectations(spec(tmp_path, ttft_s=Fraction(5)), with_places(0.0), diags=diags)
    (item,) = diags
    assert item.message.startswith("no request has a target")
    assert "100% of `acme/chat`" in item.notes[0]


@pytest.mark.parametrize(("target", "wanted", "status"), [("5s", "99%", 0), ("2ms", "100%", 1)])
def test_compile_gates(tmp_path: Path, capsys, target: str, wanted: str, status: int) -> None:
    """What can be placed by its 95th percentile may still miss a stricter expectation."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "fleet.blk").write_text(SPEC.replace("TARGET", target).replace("WANTED", wanted))
    plan = tmp_path / "plan.json"
    assert main(["compile", str(tmp_path / "fleet.blk"), "--target", "sim", "-o", str(plan)]) == status
    err = capsys.readouterr().err
    assert ("error[BC502]" in err) == bool(status)
    assert plan.exists() == (not status)
