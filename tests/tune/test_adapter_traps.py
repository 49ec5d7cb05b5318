"""Adapters as they are published: what each surprise in them leads to, word for word."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoHaConfig, LoraConfig, TrainableTokensConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from blockc.fine_tunes import LORA_REFUSED
from blockc.tune import patterns
from blockc.tune.adapter_config import APPLIED, WITHOUT_EFFECT
from tests.support.adapters import LLAMA_LINEARS, configure, save_lora
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_adapter
from tests.support.tiny_models import save_model

_SILENT = {"bias": "none", "lora_dropout": 0.05, "modules_to_save": None, "peft_type": "LORA", "task_type": "CAUSAL_LM"}
# What adapters of the hub have in their configurations, from several versions of PEFT.
_PUBLISHED = {
    "old": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "fan_in_fan_out": False,
            "rank_pattern": {}, "alpha_pattern": {}, "use_dora": False, "use_rslora": False},
    "five targets": {"r": 8, "lora_alpha": 16, "target_modules": ["up_proj", "o_proj", "down_proj", "q_proj", "v_proj"],
                     "base_model_name_or_path": "unsloth/Llama-3.2-1B-Instruct"},
    "own notes": {"r": 16, "lora_alpha": 16, "target_modules": LLAMA_LINEARS, "peft_version": "0.18.1",
                  "auto_mapping": {"base_model_class": "Gemma4ForConditionalGeneration", "unsloth_fixed": True},
                  "target_parameters": None},
}  # fmt: skip


def _diagnose(base, directory, tmp_path):
    """Chains, and everything said: code -> message, notes, help."""
    chains, _, diags = chains_of(deployment(base, {"tuned": ("base", directory)}), tmp_path / "zoo")
    assert ("tuned" in chains) == (not diags.has_errors)
    return chains, {item.code.id: (item.message, *item.notes, item.help) for item in diags}


@pytest.mark.parametrize("name", _PUBLISHED)
def test_published_configurations_are_understood(name, base, tmp_path):
    fields = _PUBLISHED[name]
    directory = save_lora(base, tmp_path / "copy", r=fields["r"], target_modules=fields["target_modules"])
    (directory / "adapter_config.json").write_text(json.dumps(_SILENT | fields))
    chains, found = _diagnose(base, directory, tmp_path)
    assert found == {}
    assert len(chains["tuned"].sides) == 4 * len(fields["target_modules"])
    assert {term.scalar("scale") for side in chains["tuned"].sides for term in side.terms} == {
        fields["lora_alpha"] / fields["r"]
    }


def test_a_fused_projection_that_the_base_has_not(base, copy, tmp_path):
    """`W_pack`: Baichuan's own code fuses what a Llama of the same shape keeps apart."""
    tensors = load_file(copy / "adapter_model.safetensors")
    fused = {name.replace("q_proj", "W_pack"): value for name, value in tensors.items() if "q_proj" in name}
    save_file(fused, copy / "adapter_model.safetensors")
    configure(copy, target_modules=["W_pack"], base_model_name_or_path="/data/home/81054062/models/Baichuan2-7B-Base/")
    _, found = _diagnose(base, copy, tmp_path)
    assert found.keys() == {"BC204", "BC211"}
    message, names, why, _ = found["BC204"]
    assert message == "8 of 8 tensors of ./copy change nothing that its base has"
    assert "base_model.model.model.layers.0.self_attn.W_pack.lora_A.weight" in names
    assert why == "the base has no linear `model.layers.0.self_attn.W_pack`"
    assert found["BC211"][0] == "the configuration of ./copy targets no linear of its base"
    assert found["BC211"][1] == "target_modules = ('W_pack',)"
    assert "81054062" not in str(found)


@pytest.mark.parametrize(
    "named",
    [
        "unsloth/meta-llama-3.1-8b-instruct-unsloth-bnb-4bit",
        "/home/somebody/Llama-3-8B-GPTQ",
        "acme/base-AWQ",
        "acme/base-int4",
    ],
)
def test_a_base_name_that_is_a_quantised_copy_warns(named, base, copy, tmp_path):
    configure(copy, base_model_name_or_path=named)
    chains, found = _diagnose(base, copy, tmp_path)
    assert found.keys() == {"BC210"}
    told = named.removeprefix("/home/somebody/")
    assert found["BC210"][0] == f"./copy was trained on a quantised copy of its base, {told}"
    assert chains["tuned"].sides


@pytest.mark.parametrize("named", ["acme/base", "acme/four-bitter-lessons", "acme/rabbit", "acme/bnbx", "/x/y/z"])
def test_other_base_names_do_not(named, base, copy, tmp_path):
    configure(copy, base_model_name_or_path=named)
    assert _diagnose(base, copy, tmp_path)[1] == {}


@pytest.mark.parametrize("value", [None, False, []])
def test_a_field_of_tomorrow_that_is_off(value, base, copy, tmp_path):
    configure(copy, field_of_tomorrow=value)
    assert _diagnose(base, copy, tmp_path)[1] == {}


@pytest.mark.parametrize("value", [True, 1, 0.5, "on", {}, {"a": 1}, [0]])
def test_a_field_of_tomorrow_that_is_on(value, base, copy, tmp_path):
    configure(copy, field_of_tomorrow=value)
    message, why, _ = _diagnose(base, copy, tmp_path)[1]["BC207"]
    assert message == f"`field_of_tomorrow = {value!r}` of ./copy is not supported"
    assert why == "it changes the result and is not understood"


@pytest.mark.parametrize(
    "value", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "velora", 3, ["pissa"]]
)
def test_initialisations_that_change_the_base(value, base, copy, tmp_path):
    configure(copy, init_lora_weights=value)
    message, why, help_ = _diagnose(base, copy, tmp_path)[1]["BC207"]
    assert message == f"`init_lora_weights = {value!r}` of ./copy is not supported"
    assert "changes the base model's weights" in why
    assert "path_initial_model_for_weight_conversion" in help_


@pytest.mark.parametrize("value", [True, False, "gaussian", "eva", "orthogonal", None])
def test_initialisations_that_do_not(value, base, copy, tmp_path):
    configure(copy, init_lora_weights=value)
    assert _diagnose(base, copy, tmp_path)[1] == {}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_fan_in_fan_out_follows_the_layer_whatever_is_written(architecture, tmp_path):
    """PEFT puts it right for the kind of layer that it finds, so neither value can be wrong."""
    base = save_model(architecture, tmp_path / "base")
    target = {"llama": "q_proj", "gpt2": "c_attn"}[architecture]
    digests = set()
    for value in (True, False):
        copy = save_lora(base, tmp_path / f"{value}", target_modules=[target], fan_in_fan_out=value)
        configure(copy, fan_in_fan_out=value)
        chains, found = _diagnose(base, copy, tmp_path)
        assert found == {}
        digests.add(chains["tuned"].digest)
        model = AutoModelForCausalLM.from_pretrained(base)
        peft = get_peft_model(model, LoraConfig(target_modules=[target], fan_in_fan_out=value))
        layers = [module for name, module in peft.named_modules() if name.endswith(target)]
        assert {layer.fan_in_fan_out for layer in layers} == {architecture == "gpt2"}
    assert len(digests) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_values_that_are_no_numbers(part, value, base, copy, tmp_path):
    tensors = load_file(copy / "adapter_model.safetensors")
    name = f"base_model.model.model.layers.2.self_attn.v_proj.{part}.weight"
    tensors[name].view(-1)[-1] = value
    save_file(tensors, copy / "adapter_model.safetensors")
    message, help_ = _diagnose(base, copy, tmp_path)[1]["BC203"]
    assert message == f"`{name}` of ./copy holds values that are not finite"
    assert "earlier checkpoint" in help_


def test_integers_in_place_of_matrices(base, copy, tmp_path):
    tensors = load_file(copy / "adapter_model.safetensors")
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name].to(torch.int8)}, copy / "adapter_model.safetensors")
    assert f"{name} is I8" in _diagnose(base, copy, tmp_path)[1]["BC209"][1]


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("alora_invocation_tokens", [5, 6], "act from these tokens on"),
        ("arrow_config", {"top_k": 3}, "token by token"),
        ("kasa_config", {"beta": 1e-4}, "the base on disk is not the base in use"),
        ("layer_replication", [[0, 2], [1, 4]], "repeats layers"),
        ("target_parameters", ["mlp.experts.gate_up_proj"], "that no linear reads"),
        ("use_bdlora", {"nblocks": 2}, "blocks on a diagonal"),
        ("use_qalora", True, "in groups"),
    ],
)
def test_variants_of_lora_that_are_not_served(field, value, why, base, copy, tmp_path):
    configure(copy, **{field: value})
    message, reason, _ = _diagnose(base, copy, tmp_path)[1]["BC207"]
    assert message == f"`{field} = {value!r}` of ./copy is not supported"
    assert why in reason


def test_every_field_of_pefts_is_applied_refused_or_of_training_alone():
    """A field that a new version of PEFT adds must be looked at: here it is missing then."""
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    refused = {field for field in fields - WITHOUT_EFFECT - APPLIED if field in LORA_REFUSED}
    assert fields - WITHOUT_EFFECT - APPLIED == refused


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": r"(.|\w)*[0-9]{2}\Z"},
        {"exclude_modules": r"(.|\w)*[0-9]{2}\Z"},
        {"rank_pattern": {r"(.|\w)*[0-9]{2}": 4}},
        {"layers_to_transform": [1], "layers_pattern": r"(.|\w)*[0-9]{2}"},
        {"modules_to_save": [r"(.|\w)*[0-9]{2}"]},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_patterns_that_backtrack_without_end(fields, base, copy, tmp_path, monkeypatch):
    """Python's own `re` would match them for longer than anybody waits."""
    monkeypatch.setattr(patterns.Matcher.__init__, "__defaults__", (0.05,))
    configure(copy, **fields)
    message, _ = _diagnose(base, copy, tmp_path)[1]["BC207"]
    assert message == "the patterns of ./copy take more than 1 s to match"


def test_a_module_that_is_saved_whole_has_no_matrices(base, tmp_path):
    """As in PEFT, which puts no adapter into what it saves: a name may stand in both fields."""
    copy = save_lora(base, tmp_path / "copy", target_modules=["q_proj", "v_proj"], modules_to_save=["v_proj"])
    chains, found = _diagnose(base, copy, tmp_path)
    assert found == {}
    assert len(chains["tuned"].sides) == 4


# Of each other kind one adapter, and the end of the name of one of its tensors.
_KINDS = {
    "ia3": (IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]), "q_proj.ia3_l"),
    "vera": (VeraConfig(r=4, target_modules=["q_proj", "v_proj"]), "q_proj.vera_lambda_b"),
    "norms": (LNTuningConfig(target_modules=["input_layernorm"]), "input_layernorm.ln_tuning_layers.weight"),
    "tokens": (TrainableTokensConfig(token_indices=[3, 5]), "embed_tokens.trainable_tokens_delta"),
    "dora": (LoraConfig(target_modules=["q_proj"], use_dora=True), "q_proj.lora_magnitude_vector"),
}


@pytest.fixture(scope="module")
def kinds(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds")
    return {name: save_adapter(base, root / name, config) for name, (config, _) in _KINDS.items()}


def _spoilt(directory, tmp_path, end, change):
    """A copy with one tensor changed; None leaves it out."""
    copy = shutil.copytree(directory, tmp_path / "copy")
    tensors = load_file(copy / "adapter_model.safetensors")
    name = min(name for name in tensors if name.endswith(end))
    value = change(tensors.pop(name))
    save_file(tensors | ({} if value is None else {name: value}), copy / "adapter_model.safetensors")
    return copy, name


@pytest.mark.parametrize("kind", _KINDS)
def test_adapters_of_all_kinds_that_are_damaged(kind, kinds, base, tmp_path):
    changes = {
        "BC203": lambda value: value * torch.nan,
        "BC202": lambda value: value[..., :-1].contiguous() if value.shape[-1] > 1 else value[:-1].contiguous(),
        "BC209": lambda value: value.to(torch.int8),
        "BC211": lambda value: None,
    }
    for code, change in changes.items():
        copy, name = _spoilt(kinds[kind], tmp_path / code, _KINDS[kind][1], change)
        _, found = _diagnose(base, copy, tmp_path)
        assert found.keys() == {code}
        assert name.removeprefix("base_model.model.") in " ".join(found[code])


@pytest.mark.parametrize("kind", _KINDS)
def test_adapters_of_all_kinds_with_a_tensor_or_field_too_many(kind, kinds, base, tmp_path):
    copy = shutil.copytree(kinds[kind], tmp_path / "copy")
    tensors = load_file(copy / "adapter_model.safetensors")
    save_file(tensors | {"base_model.model.of_tomorrow": torch.ones(3)}, copy / "adapter_model.safetensors")
    assert "of_tomorrow" in _diagnose(base, copy, tmp_path)[1]["BC204"][1]
    save_file(tensors, copy / "adapter_model.safetensors")
    assert _diagnose(base, copy, tmp_path)[1] == {}
    configure(copy, field_of_tomorrow=0.5)
    assert "field_of_tomorrow" in _diagnose(base, copy, tmp_path)[1]["BC207"][0]


@pytest.mark.parametrize("kind", ["ia3", "vera", "norms"])
@pytest.mark.parametrize("value", [["W_pack"], 3, "(", [1]])
def test_other_kinds_that_target_nothing(kind, value, kinds, base, tmp_path):
    copy = shutil.copytree(kinds[kind], tmp_path / "copy")
    configure(copy, target_modules=value)
    found = _diagnose(base, copy, tmp_path)[1]
    assert ("BC211" if value == ["W_pack"] else "BC207") in found


@pytest.mark.parametrize("value", [3, "(", [1]])
def test_modules_of_ia3_that_are_no_names(value, kinds, base, tmp_path):
    copy = shutil.copytree(kinds["ia3"], tmp_path / "copy")
    configure(copy, feedforward_modules=value)
    assert "feedforward_modules" in _diagnose(base, copy, tmp_path)[1]["BC207"][0]


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern"])
def test_patterns_of_types_that_peft_merges_backtrack_as_little(field, base, tmp_path, monkeypatch):
    """PEFT matches with `re`: it is given paths, never the patterns."""
    monkeypatch.setattr(patterns.Matcher.__init__, "__defaults__", (0.05,))
    copy = save_adapter(base, tmp_path / "copy", LoHaConfig(r=2, target_modules=["q_proj"]))
    slow = r"(.|\w)*[0-9]{2}\Z"
    configure(copy, **{field: {slow: 2} if field == "rank_pattern" else slow})
    assert "take more than 1 s" in _diagnose(base, copy, tmp_path)[1]["BC207"][0]


def test_patterns_of_types_that_peft_merges_mean_what_they_mean_to_peft(base, tmp_path):
    """One that is written with patterns is the one that is written without."""
    config = LoHaConfig(r=2, target_modules=["q_proj", "k_proj"], rank_pattern={"k_proj": 3})
    copy = save_adapter(base, tmp_path / "copy", config)
    digests = set()
    for targets, ranks in (
        (["q_proj", "k_proj"], {"k_proj": 3}),
        (r".*\.(q|k)_proj", {r"model\.layers\.\d+\..*k_proj": 3}),
    ):
        configure(copy, target_modules=targets, rank_pattern=ranks)
        chains, found = _diagnose(base, copy, tmp_path)
        assert found == {}
        digests.add(chains["tuned"].digest)
    assert len(digests) == 1
