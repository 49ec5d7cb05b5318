"""Adapters as they are published: what each surprise in them leads to, word for word."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support.adapters import LLAMA_LINEARS, configure, save_lora
from tests.support.chains import chains_of
from tests.support.deployments import deployment
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
