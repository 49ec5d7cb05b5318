"""``--target sim``: plans from configurations, as large as the real ones, and never mistaken for them."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockc.cli import main
from blockc.cli.compile import compile_file
from blockc.diag import DiagnosticError
from blockc.plan import ExecutionPlan, dump_plan, load_plan
from blockc_runtime.capabilities import missing
from tests.support.adapters import save_lora
from tests.support.tiny_models import CONFIGS, save_model

ROOT = Path(__file__).parent.parent.parent
FLEET = """
base b : hf("./base") { dtype = fp32  max_model_len = 128 }
finetune tuned : b { weights = "./adapter" }
finetune top : b { TOP }
cluster box { node local { device d0 : cpu { memory = 256MiB } } }
tenant acme { app one { model = tuned } app two { model = b } app three { model = top } }
"""
REAL = FLEET.replace("TOP", 'weights = "./top"')
ASSUMED = FLEET.replace("TOP", "assume { kind = full  changed_layers = 3..3 }")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of which no two tensors are equal, an adapter, and a checkpoint with another top layer."""
    root = tmp_path_factory.mktemp("models")
    base = save_model("llama", root / "base")
    tensors = load_file(base / "model.safetensors")
    torch.manual_seed(1)
    tensors = {name: tensor + 0.01 * torch.rand_like(tensor) for name, tensor in tensors.items()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    save_lora(base, root / "adapter")
    shutil.copytree(base, root / "top")
    top = {name: tensor * (1.25 if ".layers.3." in name else 1) for name, tensor in tensors.items()}
    save_file(top, root / "top" / "model.safetensors", metadata={"format": "pt"})
    (root / "real.blk").write_text(REAL)
    (root / "assumed.blk").write_text(ASSUMED)
    return root


@pytest.fixture(scope="module")
def bare(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return only_configurations(models, tmp_path_factory.mktemp("bare") / "fleet")


@pytest.fixture(scope="module")
def simulated(bare: Path) -> ExecutionPlan:
    return plan_of(bare / "assumed.blk", "sim")


def plan_of(spec: Path, target: Any = None) -> ExecutionPlan:
    return compile_file(spec, spec.parent / "zoo", {}, target=target)[0].plan


def only_configurations(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "zoo", "plan.json"))
    return target


def test_a_plan_without_weights_is_as_large_as_the_one_with_them(models: Path, simulated: ExecutionPlan) -> None:
    real = plan_of(models / "real.blk")
    assert simulated.memory == real.memory
    assert simulated.baselines == real.baselines
    assert simulated.kv_groups == real.kv_groups
    assert simulated.structures == real.structures
    assert len(simulated.blocks) == len(real.blocks)
    assert {n: m.parameters for n, m in simulated.models.items()} == {n: m.parameters for n, m in real.models.items()}
    assert [_passed(simulated, app) for app in range(3)] == [_passed(real, app) for app in range(3)]
    assert _sharing(simulated) == _sharing(real)


def _passed(plan: ExecutionPlan, app: int) -> list[tuple[int, int, int]]:
    chain = plan.chains[plan.apps[app].chain]
    return [(plan.segments[s].first, plan.segments[s].count, len(plan.segments[s].chains)) for s in chain.segments] + [
        (chain.side_rank, chain.max_model_len, chain.vocab_size)
    ]


def _sharing(plan: ExecutionPlan) -> list[list[bool]]:
    """For each two apps and KV group, whether pages may be shared."""
    domains = [[entry.domain for entry in plan.chains[app.chain].kv] for app in plan.apps]
    return [[a == b for a, b in zip(one, other, strict=True)] for one in domains for other in domains]


def test_it_says_so_and_nothing_runs_it(
    models: Path, simulated: ExecutionPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "plan.json"
    assert main(["compile", "--target", "sim", "--json", str(models / "assumed.blk"), "-o", str(output)]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    stored = sum(tensor.numel() for tensor in load_file(models / "base" / "model.safetensors").values())
    assert summary["parameters"] == {"b": stored, "top": stored}
    assert summary["target"] == "sim"
    assert output.read_bytes() == dump_plan(simulated)
    assert gc.isenabled()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json"]
    plan = load_plan(output)
    assert plan.target == "sim"
    assert {"weights:assumed", "device:cpu"} <= set(plan.requires)
    assert plan.models["top"].source is None
    assert main(["viz", str(output)]) == 0
    assert "nothing can serve it" in capsys.readouterr().out
    for command in ("serve", "verify"):
        assert main([command, str(output)]) == 1
        errors = capsys.readouterr().err
        assert "BC905" in errors
        assert "--target sim" in errors
        assert "Traceback" not in errors


def test_the_runtime_lacks_weights_that_are_assumed(simulated: ExecutionPlan) -> None:
    assert missing(simulated) == ("weights:assumed",)


def test_weights_that_are_there_are_not_read(models: Path, simulated: ExecutionPlan, tmp_path: Path) -> None:
    broken = shutil.copytree(models, tmp_path / "broken", ignore=shutil.ignore_patterns("zoo"))
    for path in broken.rglob("*.safetensors"):
        path.write_bytes(b"no weights")
    (broken / "base" / "tokenizer.json").write_text("no tokenizer")
    assert dump_plan(plan_of(broken / "assumed.blk", "sim")) == dump_plan(simulated)


@pytest.mark.parametrize(
    ("old", "new", "target", "code", "words"),
    [
        ("", "", None, "BC212", "`top` is assumed"),
        ("", "", "cpu", "BC212", "`top` is assumed"),
        ("", "", "cuda", "BC109", "is a cpu device, the target is cuda"),
        (": cpu", ": mi300x_192g", None, "BC109", "nothing serves on a `mi300x_192g`"),
        ("./adapter", "./absent", "sim", "BC201", "no folder `./absent`"),
        ("./base", "./top-of-nowhere", "sim", "BC201", "no folder"),
        ("./base", "./bloom", "sim", "BC205", "type 'bloom'"),
        ("3..3", "0..9", "sim", "BC109", "`b` has 4"),
        ("128", "1024", "sim", "BC109", "exceeds the 512 positions"),
        ("256MiB", "1MiB", "sim", "BC401", "devices offer 1.0 MiB"),
        ("tenant acme", "expect { memory_below = 1MiB } tenant acme", "sim", "BC502", "expected less than 1.0 MiB"),
    ],
)
def test_bad_input_is_an_error_with_a_place(
    old: str, new: str, target: Any, code: str, words: str, models: Path, tmp_path: Path
) -> None:
    folder = only_configurations(models, tmp_path / "bare")
    (folder / "bloom").mkdir()
    (folder / "bloom" / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    spec = folder / "wrong.blk"
    spec.write_text(ASSUMED.replace(old, new, 1) if old else ASSUMED)
    with pytest.raises(DiagnosticError) as caught:
        plan_of(spec, target)
    found = [item for item in caught.value.diagnostics if item.code.id == code]
    assert found, [item.message for item in caught.value.diagnostics]
    assert any(words in item.message for item in found)
    assert all(item.primary is not None and item.help for item in found)


def test_check_knows_the_target(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = only_configurations(models, tmp_path / "bare")
    assert main(["check", str(folder / "assumed.blk")]) == 1
    assert "`--target sim` plans without weights" in capsys.readouterr().err
    assert main(["check", "--target", "sim", str(folder / "assumed.blk")]) == 0
    assert main(["check", "--no-files", str(folder / "assumed.blk")]) == 0
    assert main(["check", "--target", "cpu", str(models / "assumed.blk")]) == 1
    assert "BC212" in capsys.readouterr().err


def test_a_thousand_adapters_on_ten_bases_are_a_small_plan(tmp_path: Path) -> None:
    for index in range(10):
        (tmp_path / f"b{index}").mkdir()
        (tmp_path / f"b{index}" / "config.json").write_text(json.dumps(CONFIGS["llama"].to_dict()))
    spec = tmp_path / "fleet.blk"
    spec.write_text("""
for b in 0..9 { base "b${b}" : hf("./b${b}") { dtype = bf16 } }
for b in 0..9 { for i in 0..99 {
  finetune "f${b}_${i}" : "b${b}" { assume { kind = lora  rank = 16  targets = ["q_proj", "v_proj"] } }
  tenant "t${b}_${i}" { app chat { model = "f${b}_${i}" } }
} }
cluster c { node n { for g in 0..7 { device "g${g}" : cpu { memory = 40MiB  reserve = 6% } } } }
policy { batching { max_batched_tokens = 64  max_num_seqs = 4 } }
""")
    plan = plan_of(spec, "sim")
    assert len(plan.apps) == len(plan.chains) == 1000
    assert len(dump_plan(plan)) < 5_000_000
    assert plan.solver.solver == "greedy"
    assert plan.solver.bound <= plan.solver.value <= 8
    assert len(plan.segments) == 10


# The published configuration of Llama-3-70B, in the fields that matter.
LLAMA_70B = json.loads((ROOT / "specs" / "models" / "llama-3-70b" / "config.json").read_text())


def test_seventy_billion_parameters_with_twenty_adapters_on_four_devices(tmp_path: Path) -> None:
    """Structure and peak memory; seconds are the benchmark's (`benchmarks/simulated_fleet.py`)."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(LLAMA_70B))
    adapter = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
    for index in range(20):
        (tmp_path / f"a{index}").mkdir()
        (tmp_path / f"a{index}" / "adapter_config.json").write_text(json.dumps(adapter))
    spec = tmp_path / "fleet.blk"
    spec.write_text("""
base llama : hf("./base") { dtype = bf16 }
for i in 0..19 { finetune "a${i}" : llama { weights = "./a${i}" }  tenant "t${i}" { app chat { model = "a${i}" } } }
cluster c { node n { for g in 0..3 { device "g${g}" : h100_80g { } } } }
""")
    program = (
        "import resource, sys; from blockc.cli import main; status = main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "compile", "--target", "sim", str(spec), "-o", str(tmp_path / "plan.json")],
        capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no weights were read" in done.stdout
    assert int(done.stdout.split()[-1]) * 1024 < 2 << 30
    plan = load_plan(tmp_path / "plan.json")
    assert plan.models["llama"].parameters == 70_553_706_496
    assert len(plan.paths) == 1
    assert len(plan.segments) == 1
    assert len(plan.segments[0].chains) == len(plan.chains) == 20
    (instance,) = plan.instances
    assert instance.devices == (0, 1)
    assert "devices:2" in plan.requires
    weights = [entry.weights_bytes for entry in plan.memory]
    assert weights[0] == weights[1] > 70_553_706_496
    assert weights[2:] == [0, 0]
    assert plan.baselines.ours_bytes == plan.baselines.ps_bytes
    assert plan.solver.gap == 0


def test_the_spec_of_assumed_fine_tunes(tmp_path: Path) -> None:
    plan = compile_file(ROOT / "specs" / "assumed.blk", tmp_path / "zoo", {}, target="sim")[0].plan
    assert [instance.devices for instance in plan.instances] == [(0, 1)]
    passes = {app.address: plan.chains[app.chain].segments for app in plan.apps}
    assert passes["search/chat"] == passes["lab/terse"] == passes["lab/plain"]
    shared = set(passes["lab/next"]) & set(passes["lab/plain"])
    blocks = sum(plan.segments[segment].count for segment in shared)
    assert blocks == len(next(iter(plan.paths.values())).blocks) - 4  # attention and MLP of two layers
    assert not (tmp_path / "zoo").exists()
