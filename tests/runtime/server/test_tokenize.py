"""``/tokenize``, ``/detokenize`` and ``/version``."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import httpx
import pytest

from tests.runtime.server import world

MESSAGES = [{"role": "user", "content": "hi there"}]


def test_text(http: httpx.Client):
    ids = world.tokenizer().encode("the quick 🦊").ids
    answer = http.post("/tokenize", json={"model": "acme/chat", "prompt": "the quick 🦊", "return_token_strs": True})
    body = answer.json()
    assert body["tokens"] == ids
    assert (body["count"], body["max_model_len"]) == (len(ids), world.MAX_MODEL_LEN)
    assert "".join(body["token_strs"]).startswith("the quick")
    back = http.post("/detokenize", json={"model": "acme/chat", "tokens": ids})
    assert back.json() == {"prompt": "the quick 🦊"}


@pytest.mark.parametrize("add", [True, False])
def test_a_conversation_is_what_a_chat_reads(http: httpx.Client, add: bool):
    fields: dict[str, Any] = {"model": "acme/chat", "messages": MESSAGES, "add_generation_prompt": add}
    tokens = http.post("/tokenize", json=fields).json()["tokens"]
    chat = http.post("/v1/chat/completions", json={**fields, "max_tokens": 1, "return_token_ids": True}).json()
    assert tokens == chat["choices"][0]["prompt_token_ids"]


@pytest.mark.parametrize(
    ("path", "changes", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"prompt": 7}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ("/tokenize", {"messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "x"}}]}, "tools"),
        ("/tokenize", {"prompt": "a", "temperature": 1}, "temperature"),
        ("/tokenize", {"prompt": "a" * 300_000}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a" * 300_000}]}, "messages"),
        ("/detokenize", {"tokens": [5] * 300_000}, "tokens"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens.0"),
    ],
)
def test_refusals(http: httpx.Client, path: str, changes: dict[str, Any], param: str):
    answer = http.post(path, json={"model": "acme/chat", **changes})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert http.post(path, json={"model": "acme/none", **changes}).status_code == 404


def test_version(http: httpx.Client):
    assert http.get("/version").json() == {"version": metadata.version("blockc")}
