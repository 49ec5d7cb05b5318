"""Classifiers of two tenants beside generation: compiled, verified and served from the command line, equal to PEFT."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from blockc.cli import main
from tests.e2e.fleet import chat, client_of, copied
from tests.support.fine_tunes import save_adapter

SPEC = """
base sample : hf("./base") { dtype = fp32  max_model_len = 512 }
finetune german : sample { weights = "./german" }
finetune mood   : sample { weights = "./mood" }
finetune topic  : german { weights = "./topic" }
finetune reward : sample { weights = "./reward" }
finetune tags   : sample { weights = "./tags" }
cluster box { node local { device d0 : cpu { memory = 2GiB  reserve = 128MiB } } }
tenant berlin { app chat { model = german }  app topic { model = topic } }
tenant acme   { app mood { model = mood }  app reward { model = reward }  app tags { model = tags } }
"""
CLASSES = {"mood": 2, "topic": 5, "reward": 1}
TEXTS = ["What a fine day.", "Wo liegt Paris?", "The archive is closed, and nobody knows until when."]


def _classifier(base: Path, classes: int) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes, dtype=torch.float32)


def _tagger(base: Path) -> Any:
    torch.manual_seed(7)
    return AutoModelForTokenClassification.from_pretrained(base, num_labels=3, dtype=torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = copied(tmp_path_factory.mktemp("classify") / "models", "base", "german")
    for seed, (name, classes) in enumerate(CLASSES.items()):
        config = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS")
        torch.manual_seed(seed)
        save_adapter(root / "base", root / name, config, seed=seed, model=_classifier(root / "base", classes))
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="TOKEN_CLS")
    save_adapter(root / "base", root / "tags", config, seed=7, model=_tagger(root / "base"))
    (root / "mood" / "config.json").write_text(json.dumps({"id2label": {"0": "gloomy", "1": "bright"}}))
    (root / "spec.blk").write_text(SPEC)
    assert main(["compile", str(root / "spec.blk"), "-o", str(root / "plan.json")]) == 0
    return root


@pytest.fixture(scope="module")
def http(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with client_of(folder / "plan.json", tmp_path_factory.mktemp("server")) as client:
        yield client


def _scores(folder: Path, name: str, text: str) -> list[float]:
    model = _classifier(folder / "base", CLASSES[name])
    model.config.pad_token_id = None
    if name == "topic":  # stands on another: its layers are put into the plain model first
        from transformers import AutoModelForCausalLM

        below = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        model.model = PeftModel.from_pretrained(below, folder / "german").merge_and_unload().model
    tuned = PeftModel.from_pretrained(model, folder / name).eval()
    ids = AutoTokenizer.from_pretrained(folder / "base")(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return tuned(ids).logits[0].tolist()


def test_verify_compares_every_app_with_peft(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", str(folder / "plan.json"), "--prompts", "4", "--tokens", "4"]) == 0
    assert capsys.readouterr().out.count("ok  ") == 5


def test_scores_and_text_at_once_equal_the_models_alone(folder: Path, http: httpx.Client):
    apps = {"acme/mood": "mood", "berlin/topic": "topic", "acme/reward": "reward"}
    with ThreadPoolExecutor(8) as pool:
        texts = [
            pool.submit(http.post, "/v1/chat/completions", json=chat("berlin/chat", "Wo liegt Paris?"))
            for _ in range(2)
        ]
        asked = {app: pool.submit(http.post, "/v1/classify", json={"model": app, "input": TEXTS}) for app in apps}
        for reply in texts:
            assert reply.result().json()["choices"][0]["message"]["content"]
    for app, name in apps.items():
        answer = asked[app].result().json()
        assert [entry["index"] for entry in answer["data"]] == [0, 1, 2]
        assert answer["usage"]["completion_tokens"] == 0
        assert answer["usage"]["prompt_tokens"] > 0
        for text, entry in zip(TEXTS, answer["data"], strict=True):
            expected = torch.tensor(_scores(folder, name, text))
            torch.testing.assert_close(torch.tensor(entry["logits"]), expected, atol=1e-4, rtol=1e-4)
            probs = torch.sigmoid(expected) if len(expected) == 1 else torch.softmax(expected, 0)
            torch.testing.assert_close(torch.tensor(entry["probs"]), probs, atol=1e-4, rtol=1e-4)
            names = ["gloomy", "bright"] if name == "mood" else [f"LABEL_{place}" for place in range(len(expected))]
            assert entry["label"] == names[int(expected.argmax())]
            assert entry["num_classes"] == len(expected)


@pytest.mark.parametrize(
    ("route", "body", "says"),
    [
        ("/v1/completions", {"model": "acme/mood", "prompt": "Hello"}, "use /v1/classify"),
        ("/v1/chat/completions", chat("acme/mood", "Hello"), "use /v1/classify"),
        ("/v1/classify", {"model": "berlin/chat", "input": "Hello"}, "use /v1/completions"),
        ("/v1/classify", {"model": "acme/mood"}, "`input`"),
        ("/v1/classify", {"model": "acme/mood", "input": []}, "`input` must be a text"),
        ("/v1/classify", {"model": "acme/mood", "input": [[10**6]]}, "token ids run from 0"),
        ("/v1/classify", {"model": "acme/mood", "input": [5] * 600}, "this model takes 512 tokens"),
        ("/v1/classify", {"model": "acme/mood", "input": "Hello", "stream": True}, "`stream` is not supported"),
    ],
)
def test_calls_that_cannot_be_answered(route: str, body: dict[str, Any], says: str, http: httpx.Client):
    reply = http.post(route, json=body)
    assert reply.status_code == 400
    assert says in reply.json()["error"]["message"]


def test_each_token_has_its_classes(folder: Path, http: httpx.Client):
    answer = http.post("/v1/classify", json={"model": "acme/tags", "input": TEXTS})
    assert answer.status_code == 200, answer.text
    tuned = PeftModel.from_pretrained(_tagger(folder / "base"), folder / "tags").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    for entry, text in zip(answer.json()["data"], TEXTS, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            expected = tuned(ids).logits[0]
        assert [token["id"] for token in entry["tokens"]] == ids[0].tolist()
        found = torch.tensor([token["logits"] for token in entry["tokens"]])
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
        assert [token["label"] for token in entry["tokens"]] == [f"LABEL_{n}" for n in expected.argmax(1).tolist()]
        probs = torch.tensor([token["probs"] for token in entry["tokens"]])
        torch.testing.assert_close(probs, expected.softmax(1), atol=1e-4, rtol=1e-3)
        assert entry["num_classes"] == 3
    usage = answer.json()["usage"]
    assert usage["prompt_tokens"] == sum(len(entry["tokens"]) for entry in answer.json()["data"])
