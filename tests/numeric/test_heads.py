"""Adapters with a head of their own, in one batch with generation over the same blocks, against PEFT run alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from blockc.spec.deployment import Quantize, Sharing
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


def _verified(base, fine_tunes, tmp_path, *, dtype="float32", room=256, apps=None):
    served = compiled(deployment(base, fine_tunes, dtype=dtype, max_model_len=room, apps=apps), tmp_path / "zoo")
    reports = {
        report.model: report for report in verify(served.plan, served.zoo, root=tmp_path, prompts=4, output_tokens=4)
    }
    for report in reports.values():
        assert report.passed, report
    return served, reports


@pytest.mark.parametrize(
    "config",
    [
        _lora(use_dora=True),
        _lora(modules_to_save=["norm"]),
        _lora(target_modules="all-linear"),
        _lora(task_type=None, modules_to_save=["score"]),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="SEQ_CLS"),
        LoHaConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"),
    ],
    ids=["dora", "norms", "all-linear", "auto-mapping", "ia3", "merged"],
)
def test_a_head_comes_with_any_kind_of_adapter(config, tmp_path):
    base = save_model("llama", tmp_path / "base")
    tuned = _save_classifier(base, tmp_path / "tuned", config, classes=3)
    served, _ = _verified(base, {"tuned": ("base", tuned)}, tmp_path)
    (text,) = serve_greedily(served.plan, served.zoo, [Question(app=1, tokens=(5, 9, 6), output_tokens=1)])
    expected = _scores(base, tuned, [5, 9, 6], classes=3)
    torch.testing.assert_close(text.logits[0], expected, atol=2e-5, rtol=1e-4)


def test_a_head_on_a_stack_keeps_what_lies_below_it_and_not_the_head_below(tmp_path):
    base = save_model("llama", tmp_path / "base")
    lower = save_lora(base, tmp_path / "lower", seed=3, modules_to_save=["lm_head", "norm"])
    upper = _save_classifier(base, tmp_path / "upper", _lora(), classes=2, seed=4)
    again = _save_classifier(base, tmp_path / "again", _lora(target_modules=["q_proj"]), classes=2, seed=5)
    other = _save_classifier(base, tmp_path / "other", _lora(target_modules=["q_proj"]), classes=7, seed=6)
    stack = {"lower": ("base", lower), "upper": ("lower", upper), "again": ("upper", again), "other": ("upper", other)}
    served, _ = _verified(base, stack, tmp_path)
    assert [len(served.plan.chains[served.plan.models[name].chain].labels) for name in stack] == [0, 2, 2, 7]


def test_a_whole_checkpoint_with_classes_shares_the_layers_and_carries_adapters(tmp_path):
    base = save_model("llama", tmp_path / "base")
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=3, id2label={0: "bad", 1: "fair", 2: "good"}, dtype=torch.float32
    )
    model.save_pretrained(tmp_path / "whole")
    on_it = _save_classifier(tmp_path / "whole", tmp_path / "on_it", _lora(), classes=3, seed=2)
    more = _save_classifier(tmp_path / "whole", tmp_path / "more", _lora(), classes=6, seed=3)
    served, _ = _verified(
        base, {"whole": ("base", tmp_path / "whole"), "on_it": ("whole", on_it), "more": ("whole", more)}, tmp_path
    )
    plan = served.plan
    paths = [plan.paths[plan.chains[app.chain].path].blocks[:-1] for app in plan.apps]
    assert len(set(paths)) == 1
    assert plan.chains[plan.models["on_it"].chain].labels == ("bad", "fair", "good")
    assert plan.chains[plan.models["more"].chain].labels == tuple(f"LABEL_{place}" for place in range(6))


def test_names_of_classes_are_those_beside_the_adapter(tmp_path):
    base = save_model("llama", tmp_path / "base")
    tuned = _save_classifier(base, tmp_path / "tuned", _lora(), classes=1)
    (tuned / "config.json").write_text(json.dumps({"id2label": {"0": "reward"}}))
    served, _ = _verified(base, {"tuned": ("base", tuned)}, tmp_path)
    assert served.plan.chains[served.plan.models["tuned"].chain].labels == ("reward",)
    (tuned / "config.json").write_text(json.dumps({"id2label": {"0": "yes", "1": "no"}}))
    chains, _, diags = chains_of(deployment(base, {"tuned": ("base", tuned)}), tmp_path / "zoo")
    assert "tuned" not in chains
    assert [item.code.id for item in diags] == ["BC202"]


def test_in_bfloat16_a_head_is_as_exact_as_the_reference(tmp_path):
    base = save_model("llama", tmp_path / "base")
    tuned = _save_classifier(base, tmp_path / "tuned", _lora(), classes=4)
    _verified(base, {"tuned": ("base", tuned)}, tmp_path, dtype="bfloat16")


_ENCODER = r".*(query|value|Wqkv|q_lin|q_proj|dense)"


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "modernbert"])
@pytest.mark.parametrize("loader", [AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification])
def test_classifiers_on_encoders_share_the_layers_of_their_base(model_type, loader, tmp_path):
    torch.manual_seed(0)
    model = randomize(loader.from_config(tiny_config(model_type, layers=2)))
    model.save_pretrained(tmp_path / "base")
    base = tmp_path / "base"
    if model_type == "bert" and loader is AutoModelForMaskedLM:  # as the published ones, which keep their pooler
        tensors = load_file(base / "model.safetensors")
        tensors |= {"bert.pooler.dense.weight": torch.randn(64, 64) / 8, "bert.pooler.dense.bias": torch.randn(64) / 8}
        tensors |= {"cls.seq_relationship.weight": torch.randn(2, 64), "cls.seq_relationship.bias": torch.randn(2)}
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    own = ["head", "classifier"] if model_type == "modernbert" else None
    configs = [_lora(target_modules=_ENCODER, modules_to_save=own) for _ in range(2)]
    two = _save_classifier(base, tmp_path / "two", configs[0], classes=2, seed=1)
    five = _save_classifier(base, tmp_path / "five", configs[1], classes=5, seed=2)
    served, _ = _verified(base, {"two": ("base", two), "five": ("base", five)}, tmp_path, room=_ROOM)
    plan = served.plan
    assert len({plan.paths[plan.chains[app.chain].path].blocks[:-1] for app in plan.apps}) == 1
    texts = [Question(app=app, tokens=(5, 6, 7, 8), output_tokens=1) for app in range(3)]
    apps = [app.model for app in plan.apps]
    for text, vector in zip(texts, encode(plan, served.zoo, texts), strict=True):
        if (name := apps[text.app]) != "base":
            expected = _scores(base, tmp_path / name, [5, 6, 7, 8], classes={"two": 2, "five": 5}[name])
            torch.testing.assert_close(vector, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["qwen3", "gemma2", "mixtral", "opt", "gpt_neox", "phi3", "olmo", "gpt_oss"])
def test_decoders_of_many_architectures_take_a_head(model_type, tmp_path):
    torch.manual_seed(0)  # one layer: what lies below a head is tested by its architecture's name elsewhere
    randomize(AutoModelForCausalLM.from_config(tiny_config(model_type, layers=1))).save_pretrained(tmp_path / "base")
    # Of experts PEFT adapts parameters in place of linears, which is refused by itself.
    config = _lora(target_modules=["q_proj", "v_proj"] if model_type in ("mixtral", "gpt_oss") else "all-linear")
    tuned = _save_classifier(tmp_path / "base", tmp_path / "tuned", config, classes=3)
    _verified(tmp_path / "base", {"tuned": ("base", tuned)}, tmp_path, room=_ROOM)


@pytest.mark.parametrize("way", ["quantised", "merged", "on a delta"])
def test_a_head_under_each_policy_for_the_weights_below_it(way, tmp_path):
    base = save_model("llama", tmp_path / "base")
    whole = tmp_path / "whole"
    shutil.copytree(base, whole)
    torch.manual_seed(1)
    tensors = {
        name: value + 0.004 * torch.randn_like(value) for name, value in load_file(base / "model.safetensors").items()
    }
    save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})
    tuned = _save_classifier(whole, tmp_path / "tuned", _lora(), classes=3)
    plan = deployment(base, {"whole": ("base", whole), "tuned": ("whole", tuned)}, memory_bytes=8 << 30)
    match way:
        case "quantised":
            plan = replace(plan, bases={"base": replace(plan.bases["base"], quantize=Quantize(bits=8, group=32))})
        case "merged":
            own = replace(plan.fine_tunes["tuned"], merge="always")
            plan = replace(plan, fine_tunes=plan.fine_tunes | {"tuned": own})
        case _:
            share = Sharing(mode="delta", max_error=Fraction(15, 100))
            plan = replace(plan, policy=replace(plan.policy, share=share))
    served = compiled(plan, tmp_path / "zoo")
    for report in verify(served.plan, served.zoo, root=tmp_path, prompts=4, output_tokens=4):
        assert report.passed, report
    chains = {app.model: served.plan.chains[app.chain] for app in served.plan.apps}
    paths = {name: served.plan.paths[chain.path].blocks for name, chain in chains.items()}
    if way == "on a delta":
        assert paths["base"][1:-1] == paths["whole"][1:-1], "the layers are the base's, with what changed beside them"
        assert paths["whole"][:-1] == paths["tuned"][:-1]
    if way == "merged":
        assert served.plan.models["tuned"].merged is not None


def test_a_lora_for_generation_on_a_head_adapts_the_layers_below_it(tmp_path):
    base = save_model("llama", tmp_path / "base")
    tuned = _save_classifier(base, tmp_path / "tuned", _lora(), classes=3)
    above = save_lora(base, tmp_path / "above", seed=7)
    served, _ = _verified(base, {"tuned": ("base", tuned), "above": ("tuned", above)}, tmp_path)
    assert len(served.plan.chains[served.plan.models["above"].chain].labels) == 3


def test_keys_that_name_classes_oddly_do_not_change_how_many_there_are(tmp_path):
    base = save_model("llama", tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, dtype=torch.float32)
    model.save_pretrained(tmp_path / "whole")
    path = tmp_path / "whole" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": {"1": "b", "2": "c", "7": "z"}}))
    served, _ = _verified(base, {"whole": ("base", tmp_path / "whole")}, tmp_path)
    assert served.plan.chains[served.plan.models["whole"].chain].labels == ("LABEL_0", "b", "c")
