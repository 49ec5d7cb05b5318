"""The evaluator computes what transformers and PEFT compute, sides of every foldable codec included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from blockc.evaluate import compare, logits, read_probe
from blockc.evaluate.probe import ProbeError, random_probe
from blockc.evaluate.run import NotEvaluatedError
from blockc.ir import Side, Site, term
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_adapter
from tests.support.tiny_models import save_model

HUB = Path(__file__).parent.parent / "fixtures" / "adapterhub"
TEXTS = [[3, 17, 90, 41, 5, 66, 120, 8], [1, 2, 3], [9]]


@pytest.mark.parametrize(("name", "target"), [("llama-tied", "q_proj"), ("gpt2", "c_attn"), ("mistral", "v_proj")])
def test_equals_transformers_and_peft(name: str, target: str, tmp_path: Path) -> None:
    base = save_model(name, tmp_path / "base")
    tunes = {
        "dora": save_adapter(base, tmp_path / "dora", LoraConfig(target_modules=[target], use_dora=True, bias="all")),
        "ia3": save_adapter(base, tmp_path / "ia3", IA3Config(target_modules=[target], feedforward_modules=[])),
    }
    chains, zoo, _ = chains_of(deployment(base, {n: ("base", path) for n, path in tunes.items()}), tmp_path / "zoo")
    for model, path in {"base": None, **tunes}.items():
        reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if path is not None:
            reference = PeftModel.from_pretrained(reference, path)
        for text, found in zip(TEXTS, logits(chains[model], zoo, TEXTS), strict=True):
            with torch.no_grad():
                wanted = reference(torch.tensor([text])).logits[0]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)


def test_what_it_cannot_evaluate(tmp_path: Path) -> None:
    chains, zoo, _ = chains_of(deployment(save_model("llama", tmp_path / "base")), tmp_path / "zoo")
    side = Side(site=Site(occurrence=1, name="residual.0"), terms=(term("of_tomorrow", {}),))
    with pytest.raises(NotEvaluatedError):
        logits(replace(chains["base"], sides=(side,)), zoo, TEXTS)


def test_virtual_tokens(tmp_path: Path) -> None:
    base = save_model("mistral", tmp_path / "base")
    task = {"num_virtual_tokens": 5, "task_type": "CAUSAL_LM"}
    tunes = {
        "prefix": save_adapter(base, tmp_path / "prefix", PrefixTuningConfig(**task)),
        "prompt": save_adapter(base, tmp_path / "prompt", PromptTuningConfig(**task)),
    }
    chains, zoo, _ = chains_of(deployment(base, {n: ("base", path) for n, path in tunes.items()}), tmp_path / "zoo")
    for model, path in tunes.items():
        reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), path)
        for text, found in zip(TEXTS, logits(chains[model], zoo, TEXTS), strict=True):
            with torch.no_grad():
                wanted = reference(torch.tensor([text]), use_cache=False).logits[0, -len(text) :]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)


def test_bottlenecks(tmp_path: Path) -> None:
    expected = load_file(HUB / "expected.safetensors")
    cases = ("llama-houlsby", "llama-norms", "llama-parallel", "llama-channel", "llama-uneven")
    tunes = {case.replace("-", "_"): ("base", HUB / case) for case in cases}
    chains, zoo, _ = chains_of(deployment(HUB / "llama", tunes, max_model_len=64), tmp_path / "zoo")
    for case in cases:
        (found,) = logits(chains[case.replace("-", "_")], zoo, expected["tokens"].tolist())
        torch.testing.assert_close(found, expected[case], rtol=1e-4, atol=2e-5)


def test_agreement() -> None:
    one = [torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 1.5, 0.0]])]
    same = compare(one, one, [[0, 1, 2]])
    assert (same.kl_mean, same.kl_max, same.top1, same.tokens) == (0, 0, 1, 3)
    assert same.perplexity == same.original_perplexity
    other = compare(one, [one[0].flip(1)], [[0, 1, 2]])
    assert other.kl_max > other.kl_mean > 0
    assert other.top1 == pytest.approx(2 / 3)
    p, q = one[0].log_softmax(-1), one[0].flip(1).log_softmax(-1)
    assert other.kl_mean == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-5)
    assert other.metric("top1") == pytest.approx(1 / 3)
    assert other.metric("kl") == other.kl_mean
    assert other.perplexity == pytest.approx(float(torch.exp(-(q[0, 1] + q[1, 2]) / 2)), rel=1e-5)


class TestProbes:
    def test_text(self, tmp_path: Path) -> None:
        (tmp_path / "p.txt").write_text("abc\n" * 400)
        probe = read_probe(
            tmp_path / "p.txt", "./p.txt", tokenize=lambda text: [ord(c) % 9 for c in text], vocab_size=9, longest=64
        )
        assert len(probe.texts) == 16
        assert {len(text) for text in probe.texts} == {64}
        assert probe.source == "./p.txt"

    def test_token_ids(self, tmp_path: Path) -> None:
        (tmp_path / "p.jsonl").write_text("[1, 2, 3]\n\n[4]\n[5, 6]\n")
        probe = read_probe(tmp_path / "p.jsonl", "p", tokenize=None, vocab_size=9, longest=64)
        assert probe.texts == ((1, 2, 3), (5, 6))

    @pytest.mark.parametrize(
        ("name", "text"), [("p.jsonl", "[1, 99]"), ("p.jsonl", "{"), ("p.jsonl", "[1]"), ("p.txt", "hello")]
    )
    def test_what_is_no_probe(self, name: str, text: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(ProbeError):
            read_probe(tmp_path / name, "p", tokenize=None, vocab_size=9, longest=64)

    def test_random_ids_are_the_same_each_time(self) -> None:
        assert random_probe(100, 500).digest == random_probe(100, 500).digest
        assert all(len(text) == 10 for text in random_probe(100, 10).texts)
