"""Adapters with a head of their own, in one batch with generation over the same blocks, against PEFT run alone."""

from __future__ import annotations

import json

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from blockc.verify.served import Question, encode, serve_greedily
from blockc.verify.verify import verify
from tests.support.adapters import LLAMA_LINEARS, save_lora
from tests.support.architectures import POSITIONS, randomize, tiny_config
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_adapter
from tests.support.serving import compiled
from tests.support.tiny_models import save_model

_LINEARS = {"llama": LLAMA_LINEARS, "gpt2": ["c_attn", "c_proj"]}
_ROOM = POSITIONS - 4


def _lora(**more):
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": LLAMA_LINEARS, "task_type": "SEQ_CLS"} | more)


def _save_classifier(base, root, config, *, classes, seed=0):
    torch.manual_seed(seed)  # what the base lacks is random, and PEFT saves it
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=classes, dtype=torch.float32, ignore_mismatched_sizes=True
    )
    return save_adapter(base, root, config, seed=seed, model=model)


def _scores(base, adapter, tokens, *, classes):
    """PEFT's own, without any of our code."""
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=classes, dtype=torch.float32, ignore_mismatched_sizes=True
    )
    model.config.pad_token_id = None
    tuned = PeftModel.from_pretrained(model, adapter).eval()
    with torch.inference_mode():
        return tuned(torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_batch_of_generation_and_two_tenants_classes_equals_peft(name, tmp_path):
    base = save_model(name, tmp_path / "base")
    config = {"target_modules": _LINEARS[name], "fan_in_fan_out": name == "gpt2"}
    two = _save_classifier(base, tmp_path / "two", _lora(**config), classes=2, seed=1)
    five = _save_classifier(base, tmp_path / "five", _lora(**config, use_rslora=True), classes=5, seed=2)
    served = compiled(
        deployment(
            base,
            {"two": ("base", two), "five": ("base", five)},
            apps={"acme": {"chat": "base", "mood": "two"}, "initech": {"topic": "five"}},
        ),
        tmp_path / "zoo",
    )
    plan = served.plan
    chains = {app.address: plan.chains[app.chain] for app in plan.apps}
    paths = [plan.paths[chain.path].blocks for chain in chains.values()]
    assert len({path[:-1] for path in paths}) == 1, "the body's blocks are the same blocks"
    assert len({path[-1] for path in paths}) == 3
    assert [len(chains[app].labels) for app in ("acme/chat", "acme/mood", "initech/topic")] == [0, 2, 5]
    assert len(plan.segments) == 4, "one for the layers, one for each head"

    addresses = [app.address for app in plan.apps]
    generator = torch.Generator().manual_seed(0)
    texts = {
        address: [torch.randint(0, 128, (n,), generator=generator).tolist() for n in (1, 40, 7)]
        for address in addresses
    }
    questions = [
        Question(app=addresses.index(address), tokens=tuple(text), output_tokens=6 if address == "acme/chat" else 1)
        for place in range(3)
        for address in addresses
        for text in [texts[address][place]]
    ]
    answers = serve_greedily(plan, served.zoo, questions)
    alone = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    seen = set()
    for question, answer in zip(questions, answers, strict=True):
        address = addresses[question.app]
        if address == "acme/chat":
            whole = [*question.tokens, *answer.tokens]
            with torch.inference_mode():
                expected = alone(torch.tensor([whole])).logits[0, len(question.tokens) - 1 : -1]
        else:
            adapter, classes = (two, 2) if address == "acme/mood" else (five, 5)
            expected = _scores(base, adapter, list(question.tokens), classes=classes)[None]
        assert answer.logits.shape == expected.shape
        torch.testing.assert_close(answer.logits, expected, atol=2e-5, rtol=1e-4)
        seen.add(address)
    assert len(seen) == 3
    for report in verify(plan, served.zoo, root=tmp_path, prompts=4, output_tokens=4):
        assert report.passed, report
