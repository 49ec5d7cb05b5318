"""Unusual but legal configurations are computed as transformers computes them, or refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from blockc.verify.verify import _distance, verify
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.interpreter import logits
from tests.support.serving import compiled

_ROPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
         "eos_token_id": 2}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip

# Name -> (architecture, fields of its config.json).
EXACT = {
    "biases, wide heads, one KV head": (
        "llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 16, "num_key_value_heads": 1}
    ),
    "llama3 rope": ("llama", {"rope_parameters": _LLAMA3}),
    "yarn rope": ("llama", {"rope_parameters": _YARN | {"attention_factor": 1.7}}),
    "linear rope, old spelling": (
        "llama", {"rope_parameters": ..., "rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    ),
    "windows in some layers": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    ),
    "windows in every other layer": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 8, "layer_types":
                  ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "a window of one token": ("mistral", {"sliding_window": 1}),
    "no window": ("mistral", {"sliding_window": None}),
    "scaled by layer only": ("gpt2", {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}),
    "upcast, inner size, dropout": ("gpt2", {"reorder_and_upcast_attn": True, "n_inner": 40, "resid_pdrop": 0.5}),
    "another activation": ("gpt2", {"activation_function": "gelu"}),
}  # fmt: skip
# Name -> (architecture, fields written into the config.json of a saved model, what the diagnostic says).
REFUSED = {
    "attention both ways": ("llama", {"is_causal": False}, "not causal"),
    "dynamic rope": (
        "llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "cannot be traced"
    ),
    "a window of nothing": ("mistral", {"sliding_window": 0}, "a window of 0 tokens"),
    "a Ministral in disguise": ("mistral", {"layer_types": ["full_attention"] * 3}, "Ministral"),
    "chunks in a layer": ("qwen2", {"layer_types": ["full_attention"] * 2 + ["chunked_attention"]}, "chunked"),
    "another file": ("llama", {"configuration_files": ["config.4.0.0.json"]}, "configuration_files"),
    "code of its own": ("llama", {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}, "code of its own"),
    "a number that is none": ("llama", {"rms_norm_eps": float("nan")}, "NaN"),
}  # fmt: skip


_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.1, 1.2, 1.3, 1.4], "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def _save(architecture, fields, root):
    torch.manual_seed(0)
    values = (_GPT2 if architecture == "gpt2" else _ROPE) | {key: v for key, v in fields.items() if v is not ...}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[architecture].from_dict(values))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name or "ln_" in name else 0.0, 0.25)
    model.save_pretrained(root)
    _edit(root, fields)
    return root


def _edit(root, fields):
    config = json.loads((root / "config.json").read_text())
    config = {key: value for key, value in (config | fields).items() if value is not ...}
    (root / "config.json").write_text(json.dumps(config))


def _tokens(length):
    return torch.randint(0, 64, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def _compare(root, tmp_path):
    chains, zoo, diags = chains_of(deployment(root, max_model_len=None), tmp_path / "zoo")
    assert [item.message for item in diags] == []
    reference = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32, attn_implementation="eager")
    for length in (1, 9, 64):
        with torch.no_grad():
            expected = reference(torch.tensor([_tokens(length)]), use_cache=False).logits[0]
        assert torch.allclose(logits(chains["base"], zoo, _tokens(length)), expected, atol=5e-5), length


@pytest.mark.parametrize("case", EXACT)
def test_exact(case, tmp_path):
    architecture, fields = EXACT[case]
    _compare(_save(architecture, fields, tmp_path / "model"), tmp_path)


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    architecture, fields, says = REFUSED[case]
    root = _save(architecture, {}, tmp_path / "model")
    _edit(root, fields)
    chains, _, diags = chains_of(deployment(root, max_model_len=None), tmp_path / "zoo")
    assert not chains
    assert says in " ".join(text for item in diags for text in (item.message, *item.notes))


def test_longrope_is_exact_up_to_the_length_of_pretraining_and_refused_beyond(tmp_path):
    root = _save(
        "phi3",
        {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 32, "pad_token_id": 0},
        tmp_path / "model",
    )
    chains, zoo, diags = chains_of(deployment(root, max_model_len=32), tmp_path / "zoo")
    assert [item.message for item in diags] == []
    reference = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32, attn_implementation="eager")
    for length in (1, 32):
        with torch.no_grad():
            expected = reference(torch.tensor([_tokens(length)]), use_cache=False).logits[0]
        assert torch.allclose(logits(chains["base"], zoo, _tokens(length)), expected, atol=5e-5), length
    for beyond in (33, None):
        chains, _, diags = chains_of(deployment(root, max_model_len=beyond), tmp_path / "zoo")
        assert not chains
        assert "state `max_model_len = 32` or less" in next(iter(diags)).message


# Name -> (architecture, change of the tensors of a saved model): files in another form, the same model or not.
FILES = {
    "tied, both there and different": (
        "gpt2", lambda tensors: tensors | {"lm_head.weight": torch.ones(64, 32)}
    ),
    "tied, head alone": (
        "gpt2", lambda tensors: {key.replace("transformer.wte", "lm_head"): v for key, v in tensors.items()}
    ),
    "without the prefix, with the mask": (
        "gpt2", lambda tensors: {key.removeprefix("transformer."): v for key, v in tensors.items()}
        | {"h.0.attn.bias": torch.ones(1, 1, 64, 64)},
    ),
    "other frequencies saved": (
        "llama", lambda tensors: tensors | {"model.rotary_emb.inv_freq": torch.ones(4)}
    ),
    "half precision": ("llama", lambda tensors: {key: v.half() for key, v in tensors.items()}),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_files_in_another_form(case, tmp_path):
    architecture, change = FILES[case]
    root = _save(architecture, {}, tmp_path / "model")
    tensors = change(load_file(root / "model.safetensors"))
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    _compare(root, tmp_path)


def test_the_single_file_counts_where_shards_lie_beside_it(tmp_path):
    root = _save("llama", {}, tmp_path / "model")
    stale = {name: tensor + 1 for name, tensor in load_file(root / "model.safetensors").items()}
    save_file(stale, root / "model-1.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(stale, "model-1.safetensors")}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    _compare(root, tmp_path)


def test_weights_that_are_no_numbers(tmp_path):
    root = _save("llama", {}, tmp_path / "model")
    tensors = load_file(root / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    chains, _, diags = chains_of(deployment(root, max_model_len=None), tmp_path / "zoo")
    assert not chains
    assert [item.code.id for item in diags] == ["BC203"]
    assert "model.norm.weight" in next(iter(diags)).message


def test_a_base_that_holds_an_adapter(tmp_path):
    root = _save("llama", {}, tmp_path / "model")
    (root / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    chains, _, diags = chains_of(deployment(root, max_model_len=None), tmp_path / "zoo")
    assert not chains
    assert [item.code.id for item in diags] == ["BC208"]


def test_fine_tunes_of_other_depth_window_or_rope_share_steps_with_their_base(tmp_path):
    """Their caches are laid out in another way, so they share weights and no launches; all are served exactly."""
    base = _save("mistral", {"sliding_window": None}, tmp_path / "base")
    models = {}
    for name, fields in {
        "shallow": {"num_hidden_layers": 2},
        "window": {"sliding_window": 8},
        "rope": {"rope_parameters": _YARN},
    }.items():
        shutil.copytree(base, tmp_path / name)
        _edit(tmp_path / name, fields)
        models[name] = ("base", tmp_path / name)
    tensors = load_file(base / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.2." not in name}
    save_file(kept, tmp_path / "shallow" / "model.safetensors", metadata={"format": "pt"})
    result = compiled(deployment(base, models, max_model_len=64), tmp_path / "zoo")
    reports = verify(result.plan, result.zoo, root=tmp_path, prompts=5, output_tokens=6)
    assert {report.model: report.passed for report in reports} == dict.fromkeys(("base", *models), True)
    assert result.plan.baselines.ours_bytes < result.plan.baselines.pm_bytes / 3


def test_logits_that_are_no_numbers_are_not_taken_for_equal():
    assert _distance(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])) == float("inf")
    assert _distance(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0])) == 0.5
