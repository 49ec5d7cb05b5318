"""Scores of each token, in one batch with generation and scores of texts, against transformers and PEFT run alone."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification

from blockc.spec.deployment import Policy
from blockc.verify.served import Question, serve_greedily
from blockc.verify.verify import verify
from tests.support.adapters import LLAMA_LINEARS
from tests.support.architectures import POSITIONS, randomize, tiny_config
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_adapter
from tests.support.serving import compiled

NAMES = {0: "O", 1: "B-PER", 2: "I-PER"}


def saved(base, root, *, seed=1, **options):
    """A whole checkpoint with a head for tokens on the layers of ``base``."""
    torch.manual_seed(seed)
    model = AutoModelForTokenClassification.from_pretrained(base, dtype=torch.float32, **options)
    model.save_pretrained(root)
    return root


def plain(model_type, root):
    torch.manual_seed(0)
    loader = AutoModel if model_type in ("bert", "roberta", "distilbert", "modernbert") else AutoModelForCausalLM
    layers = 3 if model_type in ("bert", "llama") else 1  # of an encoder and of a decoder some that are copies
    randomize(loader.from_config(tiny_config(model_type, layers=layers))).save_pretrained(root)
    return root


def expected(model, tokens):
    with torch.inference_mode():
        return model.eval()(torch.tensor([list(tokens)])).logits[0]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "modernbert", "llama", "gpt2", "qwen3"])
def test_every_token_equals_transformers(model_type, tmp_path):
    base = plain(model_type, tmp_path / "base")
    tags = saved(base, tmp_path / "tags", id2label=NAMES)
    served = compiled(
        deployment(
            base, {"tags": ("base", tags)}, apps={"acme": {"plain": "base", "tags": "tags"}},
            max_model_len=POSITIONS - 4,
        ),
        tmp_path / "zoo",
    )  # fmt: skip
    plan = served.plan
    (entry,) = [plan.chains[app.chain] for app in plan.apps if app.app == "tags"]
    assert (entry.labels, entry.each_token) == (tuple(NAMES.values()), True)
    assert "output:token_scores" in plan.requires
    plain_path, tags_path = (
        plan.paths[plan.chains[app.chain].path].blocks for app in sorted(plan.apps, key=lambda app: app.app)
    )
    assert plain_path[: len(tags_path) - 1] == tags_path[:-1], "the same layers"
    (number,) = [index for index, app in enumerate(plan.apps) if app.app == "tags"]
    texts = [tuple(range(5, 5 + count)) for count in (1, 2, 40)]
    answers = serve_greedily(plan, served.zoo, [Question(app=number, tokens=text, output_tokens=1) for text in texts])
    alone = AutoModelForTokenClassification.from_pretrained(tags, dtype=torch.float32)
    other = AutoModelForTokenClassification.from_pretrained(
        saved(base, tmp_path / "other", seed=9, num_labels=3), dtype=torch.float32
    )
    for text, answer in zip(texts, answers, strict=True):
        torch.testing.assert_close(answer.logits, expected(alone, text), atol=2e-5, rtol=1e-4)
        assert not torch.allclose(answer.logits, expected(other, text), atol=1e-3)
    for report in verify(plan, served.zoo, root=tmp_path, prompts=5, output_tokens=3):
        assert report.passed, report
        assert report.max_error < 2e-4, report


def test_adapters_bring_heads_for_tokens_to_a_decoder_that_generates(tmp_path):
    """Prompts longer than a step, which is read in chunks, beside generation."""
    base = plain("llama", tmp_path / "base")
    torch.manual_seed(3)
    model = AutoModelForTokenClassification.from_pretrained(base, num_labels=5, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=LLAMA_LINEARS, task_type="TOKEN_CLS")
    tags = save_adapter(base, tmp_path / "tags", config, seed=3, model=model)
    plan = deployment(
        base, {"tags": ("base", tags)}, apps={"acme": {"chat": "base", "tags": "tags"}}, max_model_len=POSITIONS - 4,
        policy=Policy(max_rows=16, max_batched_tokens=64),
    )  # fmt: skip
    served = compiled(plan, tmp_path / "zoo")
    plan = served.plan
    assert plan.chains[plan.models["tags"].chain].each_token
    number = next(index for index, app in enumerate(plan.apps) if app.app == "tags")
    text = tuple(torch.randint(5, 120, (80,), generator=torch.Generator().manual_seed(0)).tolist())
    questions = [
        Question(app=number, tokens=text, output_tokens=1),
        Question(app=1 - number, tokens=text, output_tokens=4),
        Question(app=number, tokens=text, output_tokens=1),  # nothing of it is found: there are no scores of that
    ]
    steps = []
    answers = serve_greedily(plan, served.zoo, questions, together=True, on_step=steps.append)
    rows = [row for step in steps for row in step.rows if row.request == "0"]
    assert len(rows) > 1, "in several steps"
    reference = AutoModelForTokenClassification.from_pretrained(base, num_labels=5, dtype=torch.float32)
    alone = expected(PeftModel.from_pretrained(reference, tags), text)
    for place in (0, 2):
        torch.testing.assert_close(answers[place].logits, alone, atol=2e-5, rtol=1e-4)
    for report in verify(plan, served.zoo, root=tmp_path, prompts=4, output_tokens=3):
        assert report.passed, report


def test_names_of_classes_are_those_of_the_checkpoint(tmp_path):
    base = plain("bert", tmp_path / "base")
    tags = saved(base, tmp_path / "tags", num_labels=4)
    config = json.loads((tags / "config.json").read_text())
    served = compiled(deployment(tags, max_model_len=POSITIONS - 4), tmp_path / "zoo")
    assert config["architectures"] == ["BertForTokenClassification"]
    assert served.plan.chains[0].labels == tuple(f"LABEL_{place}" for place in range(4))
