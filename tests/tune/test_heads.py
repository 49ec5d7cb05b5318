"""Heads of adapters that cannot be applied in full are refused, each with what is wrong and what to do."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from blockc.diag import Diagnostics
from blockc.tune import assume, read_models, trace_models
from tests.support.architectures import randomize, tiny_config
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_adapter
from tests.support.tiny_models import save_model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model("llama", tmp_path_factory.mktemp("llama") / "base")


def _tuned(base, root, *, targets=("q_proj",), classes=3, **fields):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes, dtype=torch.float32)
    config = LoraConfig(r=2, target_modules=list(targets), task_type="SEQ_CLS")
    save_adapter(base, root, config, model=model)
    path = root / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return root


def _rewrite(adapter, change):
    file = adapter / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


def _refused(base, fine_tunes, tmp_path):
    """The diagnostics, with all of their words."""
    chains, _, diags = chains_of(deployment(base, fine_tunes, max_model_len=None), tmp_path / "zoo")
    assert "base" in chains
    assert next(reversed(fine_tunes)) not in chains
    return {item.code.id: " ".join((item.message, *item.notes, item.help or "")) for item in diags}


_SCORE = "base_model.model.score.weight"


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (lambda held: {name: held[name] for name in held if name != _SCORE}, "BC211", "holds no classifier"),
        (lambda held: held | {_SCORE: torch.ones(3, 32)}, "BC202", "[3, 32], its place takes [3, 64]"),
        (lambda held: held | {_SCORE: torch.full((3, 64), torch.nan)}, "BC203", "not finite"),
        (lambda held: held | {_SCORE: torch.ones(3, 64, dtype=torch.int8)}, "BC209", "I8"),
        (lambda held: held | {"base_model.model.score.bias": torch.ones(3)}, "BC204", "score.bias"),
        (lambda held: held | {"base_model.model.lm_head.weight": torch.ones(128, 64)}, "BC204", "lm_head.weight"),
    ],
)
def test_a_head_that_does_not_fit(change, code, says, base, tmp_path):
    tuned = _tuned(base, tmp_path / "tuned")
    _rewrite(tuned, change)
    found = _refused(base, {"tuned": ("base", tuned)}, tmp_path)
    assert found.keys() == {code}
    assert says in found[code]


@pytest.mark.parametrize("task", ["QUESTION_ANS"])
def test_what_is_yielded_for_each_token_is_not_served(task, base, tmp_path):
    found = _refused(base, {"tuned": ("base", _tuned(base, tmp_path / "tuned", task_type=task))}, tmp_path)
    assert found.keys() == {"BC208"}
    assert task in found["BC208"]


def test_a_part_of_a_head_that_nobody_saved(tmp_path):
    randomize(AutoModelForMaskedLM.from_config(tiny_config("bert"))).save_pretrained(tmp_path / "base")
    tuned = _tuned(tmp_path / "base", tmp_path / "tuned", targets=("query",))
    found = _refused(tmp_path / "base", {"tuned": ("base", tuned)}, tmp_path)
    assert found.keys() == {"BC211"}
    assert "bert.pooler.dense.weight" in found["BC211"]
    assert "drawn at random when it was trained, and not saved" in found["BC211"]


def test_an_architecture_that_transformers_has_no_classifier_for(tmp_path):
    randomize(AutoModelForCausalLM.from_config(tiny_config("cohere"))).save_pretrained(tmp_path / "base")
    tuned = save_adapter(
        tmp_path / "base", tmp_path / "tuned", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    path = tuned / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task_type": "SEQ_CLS"}))
    _rewrite(tuned, lambda held: held | {_SCORE: torch.ones(2, 64)})
    found = _refused(tmp_path / "base", {"tuned": ("base", tuned)}, tmp_path)
    assert found.keys() == {"BC205"}
    assert "transformers cannot build it" in found["BC205"]


def test_a_head_on_virtual_tokens(base, tmp_path):
    prompt = save_adapter(base, tmp_path / "prompt", PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    tuned = _tuned(base, tmp_path / "tuned")
    found = _refused(base, {"prompt": ("base", prompt), "tuned": ("prompt", tuned)}, tmp_path)
    assert found.keys() == {"BC208"}
    assert "virtual tokens" in found["BC208"]


def test_pooling_beside_an_adapter_of_a_model_that_yields_tokens(base, tmp_path):
    tuned = save_adapter(base, tmp_path / "tuned", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    (tuned / "modules.json").write_text(json.dumps([{"type": "models.Transformer"}, {"type": "models.Pooling"}]))
    found = _refused(base, {"tuned": ("base", tuned)}, tmp_path)
    assert found.keys() == {"BC205"}
    assert "1_Pooling" in found["BC205"]


def test_a_damaged_file_is_reported_as_that(base, tmp_path):
    tuned = _tuned(base, tmp_path / "tuned")
    (tuned / "adapter_model.safetensors").write_bytes(b"nothing")
    assert _refused(base, {"tuned": ("base", tuned)}, tmp_path).keys() == {"BC203"}


def test_without_weights_a_head_is_not_planned_for(base, tmp_path):
    diags = Diagnostics()
    plan = deployment(base, {"tuned": ("base", _tuned(base, tmp_path / "tuned"))})
    files = read_models(plan, diags=diags, configuration_only=True)
    assert "tuned" not in assume(files, trace_models(files, diags=diags), diags=diags)
    assert [item.code.id for item in diags] == ["BC207"]


def test_a_vocabulary_that_grew_with_a_padding_token(base, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, dtype=torch.float32)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    tuned = save_adapter(base, tmp_path / "tuned", config, model=model, vocabulary=130)
    chains, _, diags = chains_of(deployment(base, {"tuned": ("base", tuned)}), tmp_path / "zoo")
    assert not diags.items
    assert chains["tuned"].path.vocab_size == 130
    assert chains["base"].path.vocab_size == 128


@pytest.mark.parametrize(
    ("fields", "code"),
    [({"modules_to_save": [["score"]]}, "BC207"), ({"modules_to_save": "score"}, "BC207")],
)
def test_fields_that_no_library_writes(fields, code, base, tmp_path):
    tuned = _tuned(base, tmp_path / "tuned", **fields)
    assert code in _refused(base, {"tuned": ("base", tuned)}, tmp_path)


@pytest.mark.parametrize(
    "fields", [{"task_type": ["SEQ_CLS"]}, {"task_type": None, "auto_mapping": "x"}, {"task_type": 7}]
)
def test_a_task_that_is_no_task_brings_no_head(fields, base, tmp_path):
    tuned = _tuned(base, tmp_path / "tuned", **fields)
    assert _refused(base, {"tuned": ("base", tuned)}, tmp_path).keys() & {"BC204", "BC211"}
