"""Quantised bases: what is kept, what it loses, and every kind of fine-tune on top.

The oracle is independent: transformers and PEFT on a checkpoint that holds what the integers stand for.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file

from blockc.compiler import Compiled, compile_deployment
from blockc.diag import DiagnosticError, Diagnostics
from blockc.explain import explain_why
from blockc.explain.text import why_text
from blockc.ir import QuantizedRef
from blockc.plan import ExecutionPlan, plan_uses, read_plan
from blockc.plan.file import dump_plan
from blockc.spec.deployment import Deployment, FineTune, LocalSource, Policy, Quantize, Sharing
from blockc.target import Target
from blockc.tune.stored import read_tensor
from blockc.verify import failed, verify
from blockc.zoo import Zoo
from tests.support.adapters import LLAMA_LINEARS, save_lora
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_adapter
from tests.support.tiny_models import save_model

LINEARS = LLAMA_LINEARS
HALF = Quantize(bits=4, group=32)
KINDS = {
    "lora": LoraConfig(r=4, lora_alpha=8, target_modules=LINEARS),
    "head": LoraConfig(r=4, target_modules=["q_proj", "lm_head"]),
    "saved": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head", "norm"]),
    "ia3": IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "norms": LNTuningConfig(target_modules=["input_layernorm"]),
    "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
}


def spec(root: Path, quantize: Quantize | None, tunes: dict[str, tuple[str, Path]], **settings) -> Deployment:
    found = deployment(root / "base", tunes, memory_bytes=8 << 30, **settings)
    return replace(found, bases={"base": replace(found.bases["base"], quantize=quantize)})


def compiled(what: Deployment, zoo: Path | None, target: Target | None = None) -> Compiled:
    diags = Diagnostics()
    made = compile_deployment(what, zoo=None if zoo is None else Zoo(zoo, create=True), diags=diags, target=target)
    assert not diags.has_errors
    return made


def partly_tuned(base: Path, root: Path, layers: set[int]) -> Path:
    """A full checkpoint that changes some layers' matrices a little."""
    shutil.copytree(base, root)
    state = load_file(root / "model.safetensors")
    torch.manual_seed(9)
    for name, value in state.items():
        if value.ndim == 2 and any(f"layers.{layer}." in name for layer in layers):
            state[name] = value + 0.02 * torch.randn_like(value)
    save_file(state, root / "model.safetensors", metadata={"format": "pt"})
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    base = save_model("llama", root / "base")
    for seed, (name, config) in enumerate(KINDS.items()):
        save_adapter(base, root / name, config, seed=seed)
    partly_tuned(base, root / "full", {3})
    return root


def tunes(models: Path) -> dict[str, tuple[str, Path]]:
    return {name: ("base", models / name) for name in (*KINDS, "full")} | {"stacked": ("full", models / "lora")}


@pytest.fixture(scope="module")
def served(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compiled(spec(models, HALF, tunes(models)), tmp_path_factory.mktemp("zoo") / "zoo")


def decoded(plan: ExecutionPlan, zoo: Zoo, model: str, original: Path, root: Path) -> None:
    """A checkpoint with what is served of a full model in place of its matrices."""
    shutil.copytree(original, root)
    state = load_file(root / "model.safetensors")
    path = plan.paths[plan.chains[plan.models[model].chain].path]
    for digest, prefix in zip(path.blocks, path.prefixes, strict=True):
        for name, ref in plan.blocks[digest].tensors.items():
            if isinstance(ref, QuantizedRef):
                assert state[prefix + name].shape == ref.shape
                state[prefix + name] = read_tensor(zoo, ref)
    save_file(state, root / "model.safetensors", metadata={"format": "pt"})


def test_every_kind_on_integers_equals_peft_on_what_they_stand_for(served, models, tmp_path):
    for name in (*KINDS,):
        shutil.copytree(models / name, tmp_path / name)
    for name in ("base", "full"):
        decoded(served.plan, served.zoo, name, models / name, tmp_path / name)
    as_files = {name: entry.model_copy(update={"quantization": None}) for name, entry in served.plan.models.items()}
    plan = served.plan.model_copy(update={"models": as_files})
    reports = verify(plan, served.zoo, root=tmp_path, prompts=3, output_tokens=4)
    assert {report.model for report in reports} == {"base", "full", "stacked", *KINDS}
    assert all(report.original_error is None for report in reports)
    assert not failed(reports)
    assert max(report.max_error for report in reports) < 2e-4


def test_the_plan_says_what_was_lost(served):
    entry = served.plan.models["base"].quantization
    assert entry is not None
    assert (entry.bits, entry.group) == (4, 32)
    assert entry.nbytes * 32 == entry.own_bytes * 5  # of 32 bits 4, and a float32 for each 32 values
    assert 0.05 < entry.error < 0.12
    assert entry.agreement is not None
    assert 0 < entry.agreement.kl_mean < 1
    assert entry.agreement.probe == "random token ids"
    assert served.plan.models["lora"].quantization is None
    assert served.plan.models["full"].quantization is not None


def test_what_is_shared_stays_shared(served, models, tmp_path):
    plain = compiled(spec(models, None, tunes(models)), tmp_path / "zoo").plan
    assert len(served.plan.blocks) == len(plain.blocks)
    for ours, theirs in ((served.plan, plain), (plain, served.plan)):
        for one in ours.apps:
            for other in ours.apps:
                assert together(ours, one.model, other.model) == together(theirs, one.model, other.model)


def together(plan: ExecutionPlan, one: str, other: str) -> tuple[int, int]:
    """Segments and KV domains that two models share."""
    left, right = (plan.chains[plan.models[name].chain] for name in (one, other))
    domains = {kv.domain for kv in left.kv} & {kv.domain for kv in right.kv}
    return len({*left.segments} & {*right.segments}), len(domains)


def test_tables_heads_and_norms_stay_as_they_are(served):
    for block in served.plan.blocks.values():
        for name, ref in block.tensors.items():
            is_matrix = name.endswith("proj.weight")
            assert isinstance(ref, QuantizedRef) == is_matrix, name


@pytest.mark.parametrize("how", [Quantize(bits=8, group=None), Quantize(bits=8, group=32), HALF], ids=str)
def test_bfloat16(how, models, tmp_path):
    made = compiled(spec(models, how, {"lora": ("base", models / "lora")}, dtype="bfloat16"), tmp_path / "zoo")
    reports = verify(made.plan, made.zoo, root=models, prompts=3, output_tokens=4)
    assert not failed(reports)
    assert all(report.original_error is not None for report in reports)


def test_a_group_is_halved_until_it_divides_a_row(models, tmp_path):
    made = compiled(spec(models, Quantize(bits=4, group=64), {}), tmp_path / "zoo")
    groups = {
        (name, ref.group)
        for block in made.plan.blocks.values() for name, ref in block.tensors.items() if isinstance(ref, QuantizedRef)
    }  # fmt: skip
    assert ("mlp.down_proj.weight", 32) in groups  # of 96 columns
    assert ("mlp.up_proj.weight", 64) in groups


def test_a_delta_stands_on_the_integers_of_its_base(models, tmp_path):
    policy = Policy(max_rows=16, max_batched_tokens=256, share=Sharing(mode="delta", max_error=0.2))
    what = spec(models, HALF, {"full": ("base", models / "full")}, policy=policy)
    made = compiled(what, tmp_path / "zoo")
    chains = {name: made.plan.chains[entry.chain] for name, entry in made.plan.models.items()}
    assert chains["full"].path == chains["base"].path
    assert not failed(verify(made.plan, made.zoo, root=models, prompts=2, output_tokens=3))


def test_a_plan_without_weights_has_the_same_sizes(models, tmp_path):
    what = spec(models, HALF, {"lora": ("base", models / "lora")})
    real, assumed = compiled(what, tmp_path / "zoo").plan, compiled(what, None, "sim").plan
    # The nine norms are all ones: one tensor where weights are read, and 512 bytes each where nobody knows.
    assert assumed.memory[0].weights_bytes - real.memory[0].weights_bytes == 8 * 512
    entry = assumed.models["base"].quantization
    assert entry is not None
    assert entry.nbytes == real.models["base"].quantization.nbytes
    assert (entry.tensors, entry.agreement, entry.error) == (None, None, 0)


def test_a_probe_of_text_ids(models, tmp_path):
    probe = tmp_path / "probe.jsonl"
    probe.write_text(json.dumps([1, 2, 3, 4]) + "\n")
    how = replace(HALF, probe=LocalSource(path=probe, written="./probe.jsonl"))
    entry = compiled(spec(models, how, {}), tmp_path / "zoo").plan.models["base"].quantization
    assert entry.agreement.tokens == 4
    assert entry.agreement.probe == "./probe.jsonl"
    probe.write_text("[1, 4000]\n")
    with pytest.raises(DiagnosticError) as caught:
        compiled(spec(models, how, {}), tmp_path / "zoo")
    assert caught.value.diagnostics.items[0].code.id == "BC203"


def test_merging_into_integers_is_refused(models, tmp_path):
    what = spec(models, HALF, {"lora": ("base", models / "lora")})
    lora: FineTune = what.fine_tunes["lora"]
    with pytest.raises(DiagnosticError) as caught:
        compiled(replace(what, fine_tunes={"lora": replace(lora, merge="always")}), tmp_path / "zoo")
    (item,) = caught.value.diagnostics.items
    assert item.code.id == "BC304"
    assert "`lora`" in item.message
    auto = compiled(replace(what, fine_tunes={"lora": replace(lora, merge="auto")}), tmp_path / "zoo")
    assert auto.plan.models["lora"].merged is None


def test_why_tells(served):
    app = next(index for index, app in enumerate(served.plan.apps) if app.model == "lora")
    occurrence = next(
        index for index, digest in enumerate(served.plan.paths[served.plan.chains[0].path].blocks)
        if any(isinstance(ref, QuantizedRef) for ref in served.plan.blocks[digest].tensors.values())
    )  # fmt: skip
    text = why_text(explain_why(served.plan, app, occurrence))
    assert "of 4 bits with a scale for each 32 of a row" in text
    assert "same likeliest token" in text
    assert "INTEGERS" not in why_text(explain_why(served.plan, app, 0))


def test_the_zoo_keeps_codes_and_scales(served):
    used = {use.digest for use in plan_uses(served.plan, served.zoo.blob, Diagnostics()) if use.tensor is not None}
    for block in served.plan.blocks.values():
        for ref in block.tensors.values():
            assert {part.digest for part in ref.parts} <= used
            assert all(served.zoo.has_tensor(part.digest) for part in ref.parts)


@pytest.mark.parametrize(
    "change",
    [
        lambda ref: replace(ref, bits=8),
        lambda ref: replace(ref, group=64),
        lambda ref: replace(ref, scale=ref.codes),
        lambda ref: replace(ref, codes=replace(ref.codes, digest="0" * 64)),
    ],
)
def test_integers_of_another_matrix_are_noticed(served, change):
    plan = served.plan
    digest, name, ref = next(
        (digest, name, ref) for digest, block in plan.blocks.items() for name, ref in block.tensors.items()
        if isinstance(ref, QuantizedRef)
    )  # fmt: skip
    block = plan.blocks[digest].model_copy(update={"tensors": plan.blocks[digest].tensors | {name: change(ref)}})
    changed = plan.model_copy(update={"blocks": plan.blocks | {digest: block}})
    with pytest.raises(DiagnosticError) as caught:
        read_plan(dump_plan(changed), "plan.json")
    assert "integers that are not those of its matrix" in caught.value.diagnostics.items[0].message
    assert read_plan(dump_plan(plan), "plan.json") == plan


def test_experts(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=256, sliding_window=None,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.12)
    model.save_pretrained(tmp_path / "base")
    save_lora(tmp_path / "base", tmp_path / "lora", target_modules=["q_proj", "v_proj"])
    what = spec(tmp_path, HALF, {"lora": ("base", tmp_path / "lora")})
    made = compiled(what, tmp_path / "zoo")
    kept = {
        name for block in made.plan.blocks.values() for name, ref in block.tensors.items()
        if isinstance(ref, QuantizedRef)
    }  # fmt: skip
    assert any("expert" in name for name in kept)
    assert not any(name.endswith("gate.weight") for name in kept)
    assert not failed(verify(made.plan, made.zoo, root=tmp_path, prompts=3, output_tokens=4))
