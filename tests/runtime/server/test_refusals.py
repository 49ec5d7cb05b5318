"""What cannot be served is refused at once, by name, in OpenAI's form and in few words."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import openai
import pytest

from blockc_runtime.server.detokenize import Vocabulary
from tests.runtime.server import world
from tests.runtime.server.running import RunningServer, raw

COMPLETION: dict[str, Any] = {"model": "acme/chat", "prompt": [5, 6], "max_tokens": 4}
CHAT: dict[str, Any] = {"model": "acme/chat", "messages": [{"role": "user", "content": "hi"}]}

CALL: dict[str, Any] = {"name": "f", "arguments": "{}"}


def schema(value: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


def refused(answer: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    """Check the form of an error; return its content."""
    assert answer.status_code == status, answer.text
    assert len(answer.content) <= 32 * 1024
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    for word in words:
        assert word in body["error"]["message"]
    return dict(body["error"])


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "16"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": 2**63}, "seed"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ["x"] * 100_000}, "stop"),
        ({"stop": [1] * 100_000}, "stop"),
        ({"stop": "x" * 1000}, "stop"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream_options": {"continuous": True}}, "stream_options.continuous"),
        ({"n": 10**9}, "n"),
        ({"n": 0}, "n"),
        ({"n": 100, "prompt": [[5], [6]]}, "n"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 3, "stream": True}, "best_of"),
        ({"best_of": 10**9}, "best_of"),
        ({"echo": True, "logprobs": 1, "stream": True}, "stream"),
        ({"echo": True, "prompt": [10**6]}, "prompt"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 5}, "min_tokens"),
        ({"suffix": "x"}, "suffix"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"-5": 1}}, "logit_bias"),
        ({"logit_bias": {"1000000": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 1, "05": 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(2000)}}, "logit_bias"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_p": 1.1}, "min_p"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "text", "json_schema": {}}}, "response_format.json_schema"),
        (schema({"type": "objct"}), "response_format.json_schema.schema"),
        (schema({"type": "array", "uniqueItems": True}), "response_format.json_schema.schema"),
        (schema({"uniqueItems": True, "x-guidance": {"lenient": True}}), "response_format.json_schema.schema"),
        (schema({"$ref": "https://example.com/s"}), "response_format.json_schema.schema"),
        (schema({"type": "string", "pattern": "("}), "response_format.json_schema.schema"),
        (schema({"enum": ["x" * 100_000]}), "response_format.json_schema.schema"),
        ({**schema({}), "ignore_eos": True}, "ignore_eos"),
        ({**schema({}), "guided_regex": "a"}, "guided_regex"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "7"}, "guided_json"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [""]}, "guided_choice.0"),
        ({"guided_grammar": "start: nothing"}, "guided_grammar"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"xml": "a"}}, "structured_outputs.xml"),
        ({"tempreature": 1}, "tempreature"),
        ({"x" * 10_000: 1}, None),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [[1], "a"]}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": ["a"] * 1000}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": [5] * 10_000}, "prompt"),
        ({"max_tokens": world.MAX_MODEL_LEN}, "prompt"),
    ],
)
def test_fields(http: httpx.Client, changes: dict[str, Any], param: str | None):
    began_s = time.monotonic()
    error = refused(http.post("/v1/completions", json={**COMPLETION, **changes}), 400)
    assert time.monotonic() - began_s < 1
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [1] * 1000}, "messages.0"),
        ({"messages": CHAT["messages"] * 10_000}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 5000}]}, "messages"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": CALL}] * 100}] * 50}, "messages"),
        ({"messages": [{"role": "user"}, {"content": "x"}]}, "messages.1.role"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages.0.tool_calls.0.function"),
        ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, "messages.0.weight"),
        ({"functions": [{}]}, "functions"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"modalities": ["audio"]}, "modalities"),
    ],
)  # fmt: skip
def test_chat_fields(http: httpx.Client, changes: dict[str, Any], param: str | None):
    error = refused(http.post("/v1/chat/completions", json={**CHAT, **changes}), 400)
    assert error["code"] != "context_length_exceeded"
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b'{"model": "acme/chat", "prompt": "\\ud800"}',
        b'{"model": 7}',
        b"{}",
        b"[" * 100_000,
        b'{"model": "acme/chat", "prompt": [1], "temperature": NaN}',
        b'{"model": "acme/chat", "prompt": [1], "temperature": Infinity}',
        b'{"model": "acme/chat", "prompt": [1], "temperature": -Infinity}',
        b'{"model": "acme/chat", "prompt": [1], "seed": 1e400}',
        json.dumps({"model": "acme/chat", "prompt": [1], **{f"f{i}": 1 for i in range(10_000)}}).encode(),
    ],
)  # fmt: skip
def test_bodies(http: httpx.Client, body: bytes):
    refused(http.post("/v1/completions", content=body), 400)


def test_too_long_prompts_are_told_the_limit_and_their_length(http: httpx.Client):
    length = world.MAX_MODEL_LEN + 100
    answer = http.post("/v1/completions", json={**COMPLETION, "prompt": [5] * length})
    error = refused(answer, 400, str(world.MAX_MODEL_LEN), str(length))
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("prompt", [[5] * 3000, [[5], [5] * 3000]])
def test_nothing_is_made_of_a_prompt_that_cannot_fit(http: httpx.Client, monkeypatch: pytest.MonkeyPatch, prompt: Any):
    def used(*_: object, **__: object) -> None:
        raise AssertionError("made text of a prompt that cannot fit")

    for name in ("detokenizer", "text", "decode"):
        monkeypatch.setattr(Vocabulary, name, used, raising=False)
    error = refused(http.post("/v1/completions", json={**COMPLETION, "prompt": prompt, "echo": True}), 400, "3000")
    assert error["code"] == "context_length_exceeded"


def test_the_body_limit(http: httpx.Client, server: RunningServer):
    refused(http.post("/v1/completions", content=b" " * (4 * 1024 * 1024 + 1)), 413)

    def pieces():
        for _ in range(100):
            yield b" " * 65536

    refused(http.post("/v1/completions", content=pieces()), 413)
    with raw(server.url) as connection:  # stated, and never sent
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_unknown_models_routes_and_methods(http: httpx.Client):
    for model in ("acme/none", "none/chat", "", "a" * 100_000):
        error = refused(http.post("/v1/completions", json={**COMPLETION, "model": model}), 404)
        assert error["code"] == "model_not_found"
    refused(http.get("/v1/models/acme/none"), 404)
    refused(http.get("/v1/nothing"), 404)
    refused(http.get("/docs"), 404)
    refused(http.get("/v1/completions"), 405)
    refused(http.delete("/v1/models"), 405)


def test_nothing_is_left_behind(http: httpx.Client, server: RunningServer):
    assert http.post("/v1/completions", json=COMPLETION).status_code == 200
    assert server.stats().unfinished == 0


def test_the_client_library_raises_its_own_errors(server: RunningServer):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.completions.create(model="none/none", prompt="x")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="acme/chat", prompt="x", suffix="s")
    assert caught.value.param == "suffix"
