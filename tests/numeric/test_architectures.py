"""Every architecture on the list computes what transformers computes, through the compiler and the runtime.

For those that the project names as its own the whole suite: base, a LoRA on every linear and a partly trained
checkpoint in mixed, chunked batches, up to the last position. For the others of the list the base alone; most of
them are slow tests (`make architectures` tries all of them as well).
"""

from __future__ import annotations

import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockc import architectures
from blockc.trace import trace
from blockc.verify.served import Question, serve_greedily
from blockc.verify.verify import verify
from tests.support.adapters import save_lora
from tests.support.architectures import (
    POSITIONS,
    VOCABULARY,
    copied_layers,
    is_composite,
    save_random_model,
    tiny_config,
)
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.serving import compiled

NAMED = (
    "llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "olmo2", "gpt2", "phi", "phi3", "opt",
    "gpt_neox", "stablelm", "mixtral",
)  # fmt: skip
# PEFT's `all-linear` would also act on experts, which is refused; the linears that every token passes are not.
_TARGETS = {
    "mixtral": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "qwen2_moe": r".*(self_attn\.[qkvo]_proj|shared_expert\.(gate|up|down)_proj|shared_expert_gate)",
}
# One for each thing that the named ones have not: sinks, experts behind a shared one, keys and values of two sizes,
# interleaved rotation, tables by kind of layer, buffers in the checkpoint.
_KINDS = ("gpt_oss", "deepseek_v3", "cohere", "modernbert-decoder", "glm4_moe", "nemotron", "minicpm3")
OTHERS = tuple(name for name in architectures.SUPPORTED if name not in NAMED)


def _train_top(base, target):
    """A copy whose last layer was trained."""
    target.mkdir()
    for file in base.glob("*.json"):
        (target / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(1)
    tensors = load_file(base / "model.safetensors")
    marks = (".3.",)
    changed = {
        name: tensor + 0.05 * torch.randn_like(tensor) if any(mark in name for mark in marks) else tensor
        for name, tensor in tensors.items()
    }
    save_file(changed, target / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", sorted({*NAMED, *_TARGETS}))
def test_mixed_batches_equal_each_model_alone(name, tmp_path):
    base = save_random_model(name, tmp_path / "base")
    save_lora(base, tmp_path / "lora", target_modules=_TARGETS.get(name, "all-linear"), fan_in_fan_out=name == "gpt2")
    _train_top(base, tmp_path / "top")
    tuned = {"lora": ("base", tmp_path / "lora"), "top": ("base", tmp_path / "top")}
    served = compiled(deployment(base, tuned, max_model_len=POSITIONS), tmp_path / "zoo")
    assert [item.message for item in served.diags] == []
    reports = verify(served.plan, served.zoo, root=tmp_path, prompts=4, output_tokens=6)
    for report in reports:
        assert report.passed, report
        assert report.max_error < 2e-4, report
    assert served.plan.baselines.ours_bytes < served.plan.baselines.ps_bytes
    _neighbours_change_nothing(served)


def _neighbours_change_nothing(served):
    """Up to the last position that the model has."""
    rng = random.Random(7)
    lengths = (1, 5, 33, POSITIONS - 4)
    questions = [
        Question(app=app, tokens=tuple(rng.randrange(3, VOCABULARY) for _ in range(length)), output_tokens=4)
        for app, length in zip((0, 1, 2, 0), lengths, strict=True)
    ]
    for question, answer in zip(questions, serve_greedily(served.plan, served.zoo, questions), strict=True):
        (alone,) = serve_greedily(served.plan, served.zoo, [question])
        assert alone.tokens == answer.tokens
        assert torch.allclose(alone.logits, answer.logits, atol=1e-4)


@pytest.mark.parametrize(
    "name", [name if name in _KINDS else pytest.param(name, marks=pytest.mark.slow) for name in OTHERS]
)
def test_the_base_equals_the_model_alone(name, tmp_path):
    base = save_random_model(name, tmp_path / "base")
    served = compiled(deployment(base, max_model_len=POSITIONS), tmp_path / "zoo")
    (report,) = verify(served.plan, served.zoo, root=tmp_path, prompts=3, output_tokens=3)
    assert report.passed, report
    assert report.max_error < 2e-4, report


# Those whose layers are of other forms or kinds than those before them, with as many as leave one that is a copy; the
# others are slow tests. What is made of copies is held against transformers above, for every name.
_FORMS = {"llama": 3, "qwen2": 3, "gemma2": 5, "gemma3_text": 4, "gpt2": 3, "opt": 3, "gpt_neox": 3, "mixtral": 3}


@pytest.mark.parametrize(
    "name", [name if name in _FORMS else pytest.param(name, marks=pytest.mark.slow) for name in NAMED]
)
def test_copies_of_one_layer_equal_a_capture_of_all(name):
    alike = {"use_sliding_window": False} if name == "qwen2" else {}
    config = tiny_config(name, layers=_FORMS.get(name, 4), **alike)
    assert name not in _FORMS or copied_layers(config)
    one, every = (trace(config, dtype="bfloat16", every_layer=whole) for whole in (False, True))
    assert one.blocks == every.blocks
    assert one.kv_layers == every.kv_layers
    assert one.prelude == every.prelude


# Model type -> what the diagnostic says. The reasons are the list's; these are tried again.
TRIED = {
    "bloom": "pairs tokens with tokens",
    "falcon": "attention interface",
    "gptj": "attention interface",
}


@pytest.mark.parametrize("name", TRIED)
def test_reasons_are_those_that_trying_gives(name):
    from blockc.trace import UntraceableError

    with pytest.raises(UntraceableError, match=TRIED[name]):
        trace(tiny_config(name), dtype="float32")
    assert TRIED[name] in architectures.REFUSED[name]


def test_lists_and_page_are_of_one_run():
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text()
    assert page == architectures.render_table(architectures.SUPPORTED, architectures.REFUSED)
    assert set(NAMED) <= set(architectures.SUPPORTED)
    assert not set(architectures.SUPPORTED) & architectures.REFUSED.keys()


@pytest.mark.parametrize("model_type", ["gemma3", "llama4", "bloom", "mamba", "llamma"])
def test_what_is_not_on_the_list_is_refused_by_name(model_type, tmp_path):
    import json

    base = save_random_model("llama", tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | {"model_type": model_type}
    (base / "config.json").write_text(json.dumps(config))
    chains, _, diags = chains_of(deployment(base), tmp_path / "zoo")
    assert not chains
    (found,) = diags
    assert found.code.id == "BC205"
    assert repr(model_type) in found.message
    if model_type == "gemma3":
        assert is_composite(model_type)
        assert "several models" in found.message
