"""A chain with sides computes what PEFT computes, for every way of writing a LoRA that is supported."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.support.adapters import LLAMA_LINEARS, save_lora
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.interpreter import logits
from tests.support.tiny_models import save_model

CASES = {
    "all-linears": ("llama", {}),
    "q-v-only": ("llama", {"target_modules": ["q_proj", "v_proj"], "r": 8}),
    "patterns": (
        "llama",
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"v_proj": 3, "o_proj": 32}},
    ),
    "rslora": ("llama", {"use_rslora": True, "r": 3}),
    "two-layers": ("llama", {"layers_to_transform": [1, 3]}),
    "regex": ("llama", {"target_modules": r".*layers\.[02]\.(self_attn\.q_proj|mlp\.down_proj)"}),
    "excluded": ("llama", {"exclude_modules": ["model.layers.0.self_attn.q_proj", "down_proj"]}),
    "head": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "qwen2-biases": ("qwen2", {}),
    "mistral": ("mistral", {"target_modules": ["q_proj", "k_proj"]}),
    "gpt2-fused": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
}


def _chains(plan, tmp_path):
    chains, zoo, diags = chains_of(plan, tmp_path / "zoo")
    assert [item.message for item in diags] == []
    return chains, zoo


def _tokens(seed=3, length=24):
    return torch.randint(3, 128, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("case", CASES)
def test_equals_peft(case, tmp_path):
    architecture, settings = CASES[case]
    base = save_model(architecture, tmp_path / "base")
    adapter = save_lora(base, tmp_path / "adapter", **settings)
    chains, zoo = _chains(deployment(base, {"tuned": ("base", adapter)}), tmp_path)
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    with torch.no_grad():
        expected = reference(torch.tensor([_tokens()])).logits[0]
    got = logits(chains["tuned"], zoo, _tokens())
    assert torch.allclose(got, expected, atol=5e-5)
    assert (logits(chains["base"], zoo, _tokens()) - expected).abs().max() > 1e-2, "the adapter changes nothing"


def test_stacked_adapters_equal_merging_one_and_running_the_other(tmp_path):
    base = save_model("llama", tmp_path / "base")
    lower = save_lora(base, tmp_path / "lower", seed=1)
    upper = save_lora(base, tmp_path / "upper", seed=2, target_modules=LLAMA_LINEARS[:3], r=2)
    chains, zoo = _chains(deployment(base, {"lower": ("base", lower), "upper": ("lower", upper)}), tmp_path)
    merged = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), lower
    ).merge_and_unload()
    reference = PeftModel.from_pretrained(merged, upper)
    with torch.no_grad():
        expected = reference(torch.tensor([_tokens()])).logits[0]
    assert torch.allclose(logits(chains["upper"], zoo, _tokens()), expected, atol=1e-4)
    assert (logits(chains["lower"], zoo, _tokens()) - expected).abs().max() > 1e-2
