"""Encoders and decoders of two tenants: embeddings, scores and text in the same steps, equal to PEFT run alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from blockc.cli import main
from tests.e2e.fleet import chat, client_of, copied, metric, serving
from tests.support.encoders import save_bert, save_pooling
from tests.support.fine_tunes import save_adapter

SPEC = """
base sample : hf("./base") { dtype = fp32  max_model_len = 512 }
finetune german : sample { weights = "./german" }
finetune find   : sample { weights = "./find" }
base bert : hf("./bert") { dtype = fp32 }
finetune near   : bert { weights = "./near" }
finetune mood   : bert { weights = "./mood" }
cluster box { node local { device d0 : cpu { memory = 2GiB  reserve = 128MiB } } }
tenant berlin { app chat { model = german }  app find { model = find } }
tenant acme   { app plain { model = bert }  app near { model = near }  app mood { model = mood } }
"""
# App -> folder of its base, its adapter, how its tokens become one vector, whether that is of length 1.
EMBEDDED: dict[str, tuple[str, str | None, str, bool]] = {
    "berlin/find": ("base", "find", "last", True),
    "acme/plain": ("bert", None, "mean", False),
    "acme/near": ("bert", "near", "first", True),
}
TEXTS = ["What a fine day.", "the quick brown fox jumps over the lazy dog " * 4, "?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = copied(tmp_path_factory.mktemp("embeddings") / "models", "base", "german")
    save_bert(root / "bert", is_matryoshka=True)
    for name, base, targets, pooling in (
        ("find", "base", ["q_proj", "v_proj", "down_proj"], "lasttoken"),
        ("near", "bert", ["query", "value", "output.dense"], "cls_token"),
    ):
        model = AutoModel.from_pretrained(root / base, dtype=torch.float32)
        config = LoraConfig(r=4, target_modules=targets, task_type="FEATURE_EXTRACTION")
        save_adapter(root / base, root / name, config, model=model)
        save_pooling(root / name, pooling, normalize=True)
    torch.manual_seed(5)  # what the base lacks is random, and PEFT saves it
    scored = AutoModelForSequenceClassification.from_pretrained(root / "bert", num_labels=3, dtype=torch.float32)
    saved = LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS")
    save_adapter(root / "bert", root / "mood", saved, seed=2, model=scored)
    (root / "spec.blk").write_text(SPEC)
    assert main(["compile", str(root / "spec.blk"), "-o", str(root / "plan.json")]) == 0
    return root


@pytest.fixture(scope="module")
def http(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with client_of(folder / "plan.json", tmp_path_factory.mktemp("server")) as client:
        yield client


def alone(folder: Path, app: str, text: str) -> torch.Tensor:
    """One text through transformers and PEFT."""
    base, adapter, pooling, normalize = EMBEDDED[app]
    model = AutoModel.from_pretrained(folder / base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, folder / adapter)
    ids = AutoTokenizer.from_pretrained(folder / base)(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        hidden = model.eval()(ids).last_hidden_state[0]
    vector = {"first": hidden[0], "last": hidden[-1], "mean": hidden.mean(0)}[pooling]
    return torch.nn.functional.normalize(vector, dim=0) if normalize else vector


def embed(http: httpx.Client, app: str, text: Any, **more: Any) -> dict[str, Any]:
    answer = http.post("/v1/embeddings", json={"model": app, "input": text, **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_verify_compares_every_app_with_peft(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", str(folder / "plan.json"), "--prompts", "4", "--tokens", "4"]) == 0
    assert capsys.readouterr().out.count("ok  ") == 5


def test_vectors_scores_and_text_at_once_equal_the_models_alone(folder: Path, http: httpx.Client):
    question = chat("berlin/chat", "Wo liegt Paris?")
    by_itself = http.post("/v1/chat/completions", json=question).json()["choices"][0]["message"]["content"]
    with ThreadPoolExecutor(8) as pool:
        talk = [pool.submit(http.post, "/v1/chat/completions", json=question) for _ in range(3)]
        asked = {app: pool.submit(embed, http, app, TEXTS) for app in EMBEDDED}
        moods = pool.submit(http.post, "/v1/classify", json={"model": "acme/mood", "input": TEXTS})
        assert {reply.result().json()["choices"][0]["message"]["content"] for reply in talk} == {by_itself}
    for app, reply in asked.items():
        body = reply.result()
        assert body["object"] == "list"
        assert body["model"] == app
        assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0
        assert [(entry["object"], entry["index"]) for entry in body["data"]] == [("embedding", i) for i in range(3)]
        for text, entry in zip(TEXTS, body["data"], strict=True):
            torch.testing.assert_close(torch.tensor(entry["embedding"]), alone(folder, app, text), atol=2e-5, rtol=1e-4)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "bert", num_labels=3, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(model, folder / "mood").eval()
    for text, entry in zip(TEXTS, moods.result().json()["data"], strict=True):
        ids = AutoTokenizer.from_pretrained(folder / "bert")(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            scores = tuned(ids).logits[0]
        torch.testing.assert_close(torch.tensor(entry["logits"]), scores, atol=1e-4, rtol=1e-4)
    swapped = torch.tensor(asked["acme/near"].result()["data"][0]["embedding"])
    assert (swapped - alone(folder, "acme/plain", TEXTS[0])).abs().max() > 0.05, "the adapter changes nothing"


def test_every_form_of_input_and_of_answer(folder: Path, http: httpx.Client):
    tokens = http.post("/tokenize", json={"model": "acme/near", "prompt": TEXTS[0]}).json()["tokens"]
    assert (tokens[0], tokens[-1]) == (2, 3), "[CLS] and [SEP]"
    (text,) = embed(http, "acme/near", TEXTS[0])["data"]
    for form in ([TEXTS[0]], tokens, [tokens]):
        assert embed(http, "acme/near", form)["data"] == [text]
    client = openai.OpenAI(base_url=f"{str(http.base_url).rstrip('/')}/v1", api_key="none", max_retries=0)
    for encoding in ("float", "base64", None):  # unasked, the client asks for base64 and decodes it
        given: Any = {} if encoding is None else {"encoding_format": encoding}
        (own,) = client.embeddings.create(model="acme/near", input=TEXTS[0], **given).data
        if encoding != "base64":
            assert own.embedding == pytest.approx(text["embedding"], abs=1e-7)


def test_vectors_are_cut_where_the_model_was_trained_for_it(http: httpx.Client):
    whole = torch.tensor(embed(http, "acme/plain", TEXTS[0])["data"][0]["embedding"])
    short = torch.tensor(embed(http, "acme/plain", TEXTS[0], dimensions=16)["data"][0]["embedding"])
    torch.testing.assert_close(short, whole[:16])
    assert embed(http, "acme/near", "?", dimensions=64)["data"] == embed(http, "acme/near", "?")["data"]
    refused = http.post("/v1/embeddings", json={"model": "acme/near", "input": "?", "dimensions": 16})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "dimensions"
    assert "was not trained" in refused.json()["error"]["message"]


def test_a_long_list_goes_in_waves_and_comes_back_in_order(http: httpx.Client):
    before = metric(http, "step_rows_sum")
    texts = [[2, 5 + number % 100, 3] for number in range(150)]
    data = embed(http, "acme/plain", texts)["data"]
    assert [entry["index"] for entry in data] == list(range(150))
    assert data[0]["embedding"] == pytest.approx(data[100]["embedding"], abs=1e-5)
    assert data[0]["embedding"] != data[1]["embedding"]
    assert metric(http, "step_rows_sum") - before == 150


@pytest.mark.parametrize(
    ("route", "body", "says"),
    [
        ("/v1/completions", {"model": "acme/near", "prompt": "Hello"}, "use /v1/embeddings"),
        ("/v1/chat/completions", chat("berlin/find", "Hello"), "use /v1/embeddings"),
        ("/v1/classify", {"model": "acme/plain", "input": "Hello"}, "use /v1/embeddings"),
        ("/v1/embeddings", {"model": "acme/mood", "input": "Hello"}, "use /v1/classify"),
        ("/v1/embeddings", {"model": "berlin/chat", "input": "Hello"}, "use /v1/completions"),
        ("/v1/embeddings", {"model": "acme/near", "input": []}, "`input` must be a text"),
        ("/v1/embeddings", {"model": "acme/near", "input": [""] * 2049}, "at most 2048"),
        ("/v1/embeddings", {"model": "acme/near", "input": [[10**6]]}, "token ids run from 0"),
        ("/v1/embeddings", {"model": "acme/near", "input": [5] * 97}, "this model takes 96 tokens; `input` has 97"),
        ("/v1/embeddings", {"model": "acme/near", "input": [[]]}, "no tokens"),
        ("/v1/embeddings", {"model": "acme/near", "input": "Hi", "encoding_format": "int8"}, "`encoding_format`"),
        ("/v1/embeddings", {"model": "acme/near", "input": "Hi", "dimensions": 0}, "`dimensions`"),
        ("/v1/embeddings", {"model": "acme/plain", "input": "Hi", "dimensions": 65}, "1 to 64"),
    ],
)
def test_calls_that_cannot_be_answered(route: str, body: dict[str, Any], says: str, http: httpx.Client):
    reply = http.post(route, json=body)
    assert reply.status_code == 400
    assert says in reply.json()["error"]["message"]


def test_a_text_may_be_as_long_as_the_model_reads(http: httpx.Client):
    assert len(embed(http, "acme/near", [5] * 96)["data"][0]["embedding"]) == 64


def test_a_step_too_small_for_the_model_is_said_in_numbers(folder: Path, tmp_path: Path):
    spec = folder / "small.blk"
    spec.write_text(SPEC + "policy { batching { max_batched_tokens = 40  max_num_seqs = 8 } }\n")
    assert main(["compile", str(spec), "-o", str(folder / "small.json")]) == 0
    with serving(folder / "small.json", tmp_path, keys=False) as command, command.ready().http() as http:
        body = {"model": "acme/plain", "input": [5] * 41}
        assert "takes 40 tokens; `input` has 41" in http.post("/v1/embeddings", json=body).text
        assert len(embed(http, "acme/plain", [[5] * 40, [5] * 39, [5, 6]])["data"]) == 3
        assert json.loads(http.get("/v1/models/acme/plain").text)["max_model_len"] == 40
