"""Embeddings of models that read from left to right: those of the last token, in one batch with generation."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel
from transformers import AutoModel, AutoModelForCausalLM

from blockc.verify.served import Question, serve_greedily
from blockc.verify.verify import verify
from tests.support.adapters import LLAMA_LINEARS
from tests.support.architectures import randomize, tiny_config
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.encoders import save_pooling
from tests.support.fine_tunes import save_adapter
from tests.support.serving import compiled


def pooled(root, mode="lasttoken", *, normalize=True):
    return save_pooling(root, mode, normalize=normalize)


def saved(model_type, root, *, loader=AutoModelForCausalLM):
    torch.manual_seed(0)
    randomize(loader.from_config(tiny_config(model_type, layers=3))).save_pretrained(root)
    return root


def expected(model, tokens, *, normalize=True):
    with torch.inference_mode():
        last = model.eval()(torch.tensor([list(tokens)])).last_hidden_state[0, -1]
    return torch.nn.functional.normalize(last, dim=0) if normalize else last


@pytest.mark.parametrize(
    ("model_type", "loader", "normalize"),
    [
        ("qwen3", AutoModelForCausalLM, True),
        ("qwen3", AutoModel, False),
        ("llama", AutoModel, True),
        ("gpt2", AutoModelForCausalLM, True),
    ],
)
def test_the_last_token_of_a_checkpoint_equals_transformers(model_type, loader, normalize, tmp_path):
    root = pooled(saved(model_type, tmp_path / "model", loader=loader), normalize=normalize)
    served = compiled(deployment(root, max_model_len=None), tmp_path / "zoo")
    (report,) = verify(served.plan, served.zoo, root=tmp_path, prompts=10, output_tokens=1)
    assert report.passed
    assert report.max_error < 2e-5, report
    text = Question(app=0, tokens=tuple(range(5, 60)), output_tokens=1)
    (answer,) = serve_greedily(served.plan, served.zoo, [text])
    theirs = expected(AutoModel.from_pretrained(root), text.tokens, normalize=normalize)
    torch.testing.assert_close(answer.logits[0], theirs, atol=2e-5, rtol=1e-4)
    other = saved(model_type, tmp_path / "other")
    assert not torch.allclose(answer.logits[0], expected(AutoModel.from_pretrained(other), text.tokens[:-1]), atol=1e-2)


def test_an_adapter_for_embeddings_shares_every_layer_with_generation(tmp_path):
    base = saved("llama", tmp_path / "base")
    lora = {"r": 4, "target_modules": LLAMA_LINEARS}
    talk = save_adapter(base, tmp_path / "talk", LoraConfig(**lora, task_type="CAUSAL_LM"), seed=1)
    find = save_adapter(
        base, tmp_path / "find", LoraConfig(**lora, task_type="FEATURE_EXTRACTION"), seed=2,
        model=AutoModel.from_pretrained(base),
    )  # fmt: skip
    over = save_adapter(
        base, tmp_path / "over", LoraConfig(**lora, task_type="FEATURE_EXTRACTION"), seed=3,
        model=AutoModel.from_pretrained(base),
    )  # fmt: skip
    merged = save_adapter(
        base, tmp_path / "merged", LoHaConfig(r=2, target_modules=["q_proj"], task_type="FEATURE_EXTRACTION"), seed=4,
        model=AutoModel.from_pretrained(base),
    )  # fmt: skip
    pooled(merged)
    pooled(find)
    pooled(over, normalize=False)
    served = compiled(
        deployment(
            base,
            {"talk": ("base", talk), "find": ("base", find), "over": ("talk", over), "merged": ("base", merged)},
            apps={
                "acme": {"chat": "talk", "plain": "base"},
                "birch": {"find": "find", "over": "over", "merged": "merged"},
            },
            max_model_len=None,
        ),
        tmp_path / "zoo",
    )  # fmt: skip
    plan = served.plan
    for report in verify(plan, served.zoo, root=tmp_path, prompts=6, output_tokens=4):
        assert report.passed, report
        assert report.max_error < 2e-5, report
    paths = {app.address: plan.paths[plan.chains[app.chain].path].blocks for app in plan.apps}
    layers = len(plan.paths[plan.chains[0].path].kv_layers) * 2
    assert len({path[: layers + 1] for path in paths.values()}) == 1, "the body's blocks are the same blocks"
    shapes = {app.address: plan.chains[app.chain].embedding for app in plan.apps}
    assert shapes["acme/chat"] is shapes["acme/plain"] is None
    assert (shapes["birch/find"].width, shapes["birch/find"].is_normalized) == (64, True)
    assert not shapes["birch/over"].is_normalized
    tokens = tuple(range(7, 50))
    app = next(i for i, app in enumerate(plan.apps) if app.address == "birch/find")
    (answer,) = serve_greedily(plan, served.zoo, [Question(app=app, tokens=tokens, output_tokens=1)])
    alone = expected(PeftModel.from_pretrained(AutoModel.from_pretrained(base), find), tokens)
    torch.testing.assert_close(answer.logits[0], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("field", "widths"), [({}, ()), ({"is_matryoshka": True}, None),
                                               ({"matryoshka_dimensions": [32, 8, 1000, 8]}, (8, 32))])  # fmt: skip
def test_a_plan_says_at_which_lengths_an_embedding_is_of_use(field, widths, tmp_path):
    root = pooled(saved("qwen3", tmp_path / "model"))
    (root / "config.json").write_text(json.dumps(json.loads((root / "config.json").read_text()) | field))
    plan = compiled(deployment(root, max_model_len=None), tmp_path / "zoo").plan
    assert plan.chains[0].embedding.widths == widths


@pytest.mark.parametrize(
    ("mode", "file", "says"),
    [
        ("mean_tokens", {}, "last token"),
        ("max_tokens", {}, "a pooling of max"),
        ("lasttoken", {"sentence_bert_config.json": {"do_lower_case": True}}, "do_lower_case"),
        ("lasttoken", {"config_sentence_transformers.json": {"default_prompt_name": "query"}}, "default_prompt_name"),
    ],
)
def test_what_would_be_another_embedding_is_refused(mode, file, says, tmp_path):
    root = pooled(saved("llama", tmp_path / "model"), mode)
    for name, values in file.items():
        (root / name).write_text(json.dumps(values))
    chains, _, diags = chains_of(deployment(root, max_model_len=None), tmp_path / "zoo")
    assert not chains
    assert [item.code.id for item in diags] == ["BC205"]
    assert says in next(iter(diags)).message
