"""What a compilation promises: the same bytes anywhere, each tensor stored once, all problems of a stage together."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockc.compiler import compile_deployment
from blockc.diag import DiagnosticError, Diagnostics
from blockc.plan import dump_plan, load_plan
from blockc.render import STAGES, render_stage
from blockc.spec.deployment import Deployment
from blockc.zoo import Zoo
from tests.support.adapters import save_lora
from tests.support.deployments import deployment
from tests.support.serving import compiled, zoo_bytes
from tests.support.tiny_models import save_model

SPEC = """
blockc { edition = 1 }
base b : hf("./base") { dtype = fp32  max_model_len = 128 }
finetune tuned : b { weights = "./adapter" }
finetune top : b { weights = "./top" }
cluster box { node local { device d0 : cpu { memory = 256MiB } device d1 : cpu { memory = 256MiB } } }
tenant acme { app one { model = tuned } app two { model = b } app three { model = top } }
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    base = save_model("llama", root / "base")
    save_lora(base, root / "adapter")
    _changed(base, root / "top", "layers.3.")
    (root / "fleet.blk").write_text(SPEC)
    return root


def _changed(base: Path, target: Path, only: str) -> Path:
    shutil.copytree(base, target)
    tensors = load_file(base / "model.safetensors")
    for name in tensors:
        if only in name and tensors[name].ndim == 2:  # random norms are all ones, and equal tensors are one
            tensors[name] = tensors[name] * 1.25
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


# Never the one of this process.
_OTHER_SEED = "0" if os.environ.get("PYTHONHASHSEED") == "4242" else "4242"


def _compile(spec: Path, output: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "blockc", "compile", str(spec), "-o", str(output), *options],
        capture_output=True, text=True, check=False, env=os.environ | environ,
    )  # fmt: skip


def test_the_same_spec_gives_the_same_bytes_in_any_folder_and_under_any_hash_seed(models, blockc, tmp_path):
    """Here, with what strings hash to in this process, and elsewhere in one with a seed of its own."""
    moved = shutil.copytree(models, tmp_path / "elsewhere" / "deep")
    first, second = tmp_path / "1" / "plan.json", tmp_path / "2" / "plan.json"
    dumps = [("--dump-after", "all", "--dump-to", str(output.parent / "dump")) for output in (first, second)]
    ended = blockc("compile", models / "fleet.blk", "-o", first, *dumps[0])
    assert ended.code == 0, ended.errors
    result = _compile(moved / "fleet.blk", second, *dumps[1], PYTHONHASHSEED=_OTHER_SEED)
    assert result.returncode == 0, result.stderr
    assert first.read_bytes() == second.read_bytes()
    texts = [
        [(path.name, path.read_bytes()) for path in sorted((f.parent / "dump").iterdir())] for f in (first, second)
    ]
    assert [name for name, _ in texts[0]] == [f"{place}-{stage}.txt" for place, stage in enumerate(STAGES, start=1)]
    assert texts[0] == texts[1]
    assert not any(str(tmp_path).encode() in text for _, text in texts[1])
    assert str(tmp_path).encode() not in first.read_bytes()
    assert dump_plan(load_plan(first)) == first.read_bytes()


def test_sixteen_adapters_take_a_base_and_sixteen_adapters(tmp_path):
    base = save_model("llama", tmp_path / "base")
    adapters = {f"a{index}": ("base", save_lora(base, tmp_path / f"a{index}", seed=index, r=32)) for index in range(16)}
    result = compiled(deployment(base, adapters), tmp_path / "zoo")
    files = [base / "model.safetensors", *(path / "adapter_model.safetensors" for _, path in adapters.values())]
    given = sum(file.stat().st_size for file in files)
    tensors = zoo_bytes(result.zoo) - _blob_bytes(result.zoo)
    assert abs(tensors - given) <= 0.01 * given


def _blob_bytes(zoo) -> int:
    return sum(path.stat().st_size for path in zoo.root.rglob("*") if path.is_file() and path.suffix != ".safetensors")


def test_a_checkpoint_with_a_changed_top_layer_stores_that_layer(models, tmp_path):
    base = models / "base"
    alone = compiled(deployment(base), tmp_path / "alone")
    both = compiled(deployment(base, {"top": ("base", models / "top")}), tmp_path / "both")
    tensors = load_file(base / "model.safetensors")
    layer = sum(tensor.nbytes for name, tensor in tensors.items() if "layers.3." in name and tensor.ndim == 2)
    assert both.plan.baselines.ours_bytes - alone.plan.baselines.ours_bytes == layer


def test_problems_of_several_models_are_reported_together(models, tmp_path):
    broken = {}
    for name in ("one", "two"):
        directory = shutil.copytree(models / "adapter", tmp_path / name)
        tensors = load_file(directory / "adapter_model.safetensors")
        tensors[f"stray.{name}"] = torch.ones(1)
        save_file(tensors, directory / "adapter_model.safetensors")
        broken[name] = ("base", directory)
    with pytest.raises(DiagnosticError) as caught:
        compiled(deployment(models / "base", broken), tmp_path / "zoo")
    messages = [item.message for item in caught.value.diagnostics]
    assert len(messages) == 2
    assert "./one" in messages[0]
    assert "./two" in messages[1]


def test_a_full_fine_tune_that_shares_nothing_warns(models, tmp_path):
    other = _changed(models / "base", tmp_path / "other", "")
    result = compiled(deployment(models / "base", {"other": ("base", other)}), tmp_path / "zoo")
    assert [item.code.id for item in result.diags] == ["BC301"]


def test_an_adapter_before_its_training_is_its_base_and_warns(models, tmp_path):
    fresh = shutil.copytree(models / "adapter", tmp_path / "fresh")
    tensors = load_file(fresh / "adapter_model.safetensors")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items() if "lora_B" in name}
    save_file(tensors | zeros, fresh / "adapter_model.safetensors")
    models_of_it = {"fresh": ("base", fresh), "tuned": ("base", models / "adapter"), "stacked": ("tuned", fresh)}
    result = compiled(deployment(models / "base", models_of_it), tmp_path / "zoo")
    assert [(item.code.id, item.message) for item in result.diags] == [
        ("BC302", "`fresh` changes nothing: it is served as `base`"),
        ("BC302", "`stacked` changes nothing: it is served as `tuned`"),
    ]
    chain = {name: model.chain for name, model in result.plan.models.items()}
    assert chain["fresh"] == chain["base"] != chain["tuned"] == chain["stacked"]


def test_what_does_not_fit_says_so_with_the_smallest_help(blockc, models, tmp_path):
    spec = tmp_path / "fleet.blk"
    spec.write_text(SPEC.replace('"./', f'"{models}/').replace("256MiB", "1MiB"))
    ended = blockc("compile", spec, "-o", tmp_path / "plan.json")
    assert ended.code == 3
    assert "BC401" in ended.errors
    assert "MiB" in ended.errors
    assert not (tmp_path / "plan.json").exists()


def _results(wanted: Deployment, root: Path) -> tuple[dict[str, str], list[str]]:
    """The text of each stage that yielded something, and the codes of what ended the compilation."""
    texts: dict[str, str] = {}
    with pytest.raises(DiagnosticError) as caught:
        compile_deployment(
            wanted, zoo=Zoo(root, create=True), diags=Diagnostics(),
            on_result=lambda name, result: texts.update({name: render_stage(name, result)}),
        )  # fmt: skip
    return texts, [item.code.id for item in caught.value.diagnostics]


def test_what_stages_yield_can_be_read_when_a_later_one_fails(models, tmp_path):
    texts, codes = _results(deployment(models / "base", memory_bytes=1 << 10), tmp_path / "zoo")
    assert codes == ["BC401"]
    assert list(texts) == ["read", "trace", "tune", "share", "merge", "quantize", "unify", "place"]
    assert "no placement" in texts["place"]
    assert "model base: LlamaForCausalLM, F32" in texts["trace"]


def test_a_stage_that_fails_yields_what_it_has(models, tmp_path):
    broken = shutil.copytree(models / "adapter", tmp_path / "broken")
    tensors = load_file(broken / "adapter_model.safetensors")
    save_file(tensors | {"stray": torch.ones(1)}, broken / "adapter_model.safetensors")
    texts, codes = _results(deployment(models / "base", {"broken": ("base", broken)}), tmp_path / "zoo")
    assert codes == ["BC204"]
    assert list(texts) == ["read", "trace", "tune"]
    assert "chain of model base" in texts["tune"]
    assert "chain of model broken" not in texts["tune"]


def test_tenants_bytes_add_up(models, tmp_path):
    tenants = {"acme": {"one": "base", "two": "tuned"}, "zoo": {"law": "top"}, "both": {"a": "tuned", "b": "top"}}
    fine_tunes = {"tuned": ("base", models / "adapter"), "top": ("base", models / "top")}
    plan = compiled(deployment(models / "base", fine_tunes, apps=tenants), tmp_path / "zoo").plan
    assert [entry.tenant for entry in plan.tenants] == ["acme", "both", "zoo"]
    assert sum(entry.fair_bytes for entry in plan.tenants) == plan.baselines.ours_bytes
    assert sum(entry.pm_bytes for entry in plan.tenants) == plan.baselines.pm_bytes
    assert [entry.private_bytes for entry in plan.tenants] == [0, 0, 0], "`both` has all that the others have"


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("model = tuned", "model = tunned", "BC101"),
        ("memory = 256MiB", "memory = 256M", "BC105"),
        ("memory = 256MiB", "memory = 5s", "BC104"),
        ("./adapter", "./absent", "BC201"),
        ("max_model_len = 128", "max_model_len = 100000", "BC109"),
        ("tenant acme {", "tennant acme {", "BC103"),
    ],
)
def test_bad_input_is_an_error_with_a_place(old, new, code, blockc, models, tmp_path):
    spec = tmp_path / "fleet.blk"
    spec.write_text(SPEC.replace(old, new, 1).replace('"./', f'"{models}/'))
    ended = blockc("compile", spec, "-o", tmp_path / "plan.json")
    assert ended.code == 1
    assert code in ended.errors
    assert f"{spec}:" in ended.errors
