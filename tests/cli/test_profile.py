"""`blockc profile`: a real plan measured, and what `blockc simulate` does with the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockc.cli import main
from blockc.plan import write_plan
from tests.plan.fleet import fleet_plan
from tests.support.adapters import save_lora
from tests.support.tiny_models import save_model

SPEC = """
base b : hf("./base") { dtype = fp32  max_model_len = 128 }
finetune tuned : b { weights = "./adapter" }
cluster box { node local { device d0 : cpu { memory = 256MiB } } }
policy { batching { max_batched_tokens = 64  max_num_seqs = 4 } }
tenant acme { app one { model = tuned } app two { model = b } }
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("measured")
    save_lora(save_model("llama", root / "base"), root / "adapter")
    (root / "fleet.blk").write_text(SPEC)
    assert main(["compile", str(root / "fleet.blk"), "-o", str(root / "plan.json"), "--progress", "none"]) == 0
    command = ["profile", str(root / "plan.json"), "-o", str(root / "profile.json"), "--seconds", "2", "--repeat", "1"]
    assert main(command) == 0
    return root


def test_a_profile_says_what_it_is_of(measured: Path) -> None:
    document = json.loads((measured / "profile.json").read_text())
    plan = json.loads((measured / "plan.json").read_text())["plan"]
    assert document["device"] == "cpu"
    assert document["structures"] == sorted(plan["structures"])
    assert document["samples"] >= 4
    assert sum(own["samples"] for own in document["kinds"].values()) == document["samples"]
    assert set(document["machine"]) >= {"machine", "torch", "threads"}
    rates = document["rates"]
    assert rates["step_s"] + rates["block_s"] + rates["row_s"] > 0
    assert document["error_p50"] < 1.0


def test_a_plan_is_simulated_by_its_own_profile(measured: Path, capsys) -> None:
    command = [
        "simulate",
        str(measured / "plan.json"),
        "--rate",
        "2",
        "--duration",
        "5",
        "--prompt",
        "9",
        "--output",
        "5",
    ]
    assert main([*command, "--json"]) == 0
    catalogue = json.loads(capsys.readouterr().out)["fleets"][0]["figures"]["tpot_p50_s"]["mean"]
    assert main([*command, "--profile", str(measured / "profile.json"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["diagnostics"] == []
    own = document["fleets"][0]["figures"]["tpot_p50_s"]["mean"]
    assert own > 0
    assert own != catalogue


def test_a_profile_of_other_structures_warns(measured: Path, tmp_path: Path, capsys) -> None:
    write_plan(fleet_plan(), tmp_path / "plan.json")
    command = ["simulate", str(tmp_path / "plan.json"), "--rate", "2", "--duration", "2"]
    assert main([*command, "--profile", str(measured / "profile.json")]) == 0
    out, err = capsys.readouterr()
    assert "warning[BC506]: 4 of 4 structures of the plan were not measured" in err
    assert out.startswith("SIMULATED")


def test_a_profile_of_another_device_is_refused(measured: Path, tmp_path: Path, capsys) -> None:
    document = json.loads((measured / "profile.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps({**document, "device": "h100_80g"}))
    command = ["simulate", str(measured / "plan.json"), "--rate", "2", "--profile", str(tmp_path / "other.json")]
    assert main(command) == 1
    assert "error[BC505]: the profile is of a `h100_80g`, the plan's devices are `cpu`" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("{}")
    assert main(command) == 1
    assert "BC505" in capsys.readouterr().err


def test_a_measured_kind_needs_no_catalogue(measured: Path, tmp_path: Path, capsys) -> None:
    made = fleet_plan()
    device = made.devices[0].model_copy(update={"kind": "cuda"})
    write_plan(made.model_copy(update={"devices": (device,)}), tmp_path / "plan.json")
    document = json.loads((measured / "profile.json").read_text())
    (tmp_path / "cuda.json").write_text(json.dumps({**document, "device": "cuda"}))
    command = ["simulate", str(tmp_path / "plan.json"), "--rate", "2", "--duration", "2"]
    assert main([*command, "--profile", str(tmp_path / "cuda.json")]) == 0
    assert "BC504" not in capsys.readouterr().err


def test_plans_without_weights_cannot_be_measured(tmp_path: Path, capsys) -> None:
    plan = fleet_plan().model_copy(update={"target": "sim"})
    write_plan(plan, tmp_path / "plan.json")
    assert main(["profile", str(tmp_path / "plan.json"), "-o", str(tmp_path / "profile.json")]) == 1
    assert "BC905" in capsys.readouterr().err
    assert not (tmp_path / "profile.json").exists()
