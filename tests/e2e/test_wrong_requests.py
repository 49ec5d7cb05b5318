"""Requests that cannot be served: refused at once, by name, while others are served as if nothing had been."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.fleet import KEYS, TENANTS, Command, answer, chat, delta, events, metric
from tests.support.processes import eventually

COMPLETION: dict[str, Any] = {"model": "public/ask", "prompt": [5, 6], "max_tokens": 4}
PATHS = ("/v1/completions", "/v1/chat/completions")
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": -1}, "max_tokens"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"n": 10**9}, "n"),
    ({"stop": ["x"] * 100_000}, "stop"),
    ({"prompt": [2048]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [7] * 600}, "prompt"),
    ({"prompt": "word " * 2000}, "prompt"),
    ({"max_tokens": 10**9}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"logprobs": 10**9}, "logprobs"),
    ({"temprature": 0.5}, "temprature"),
]


def refused(reply: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert len(reply.content) < 1024
    assert "Traceback" not in reply.text
    error = dict(reply.json()["error"])
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def test_wrong_values_are_refused_by_name_while_a_stream_goes_on(http: httpx.Client):
    alone = answer(http, "library/reading", "Tell me a story about a bear.")

    def streamed() -> str:
        body = chat("library/reading", "Tell me a story about a bear.", stream=True)
        with http.stream("POST", "/v1/chat/completions", json=body) as reply:
            return "".join(map(delta, events(reply.iter_lines())))

    with ThreadPoolExecutor(2) as pool:
        streams = [pool.submit(streamed) for _ in range(2)]
        for change, param in WRONG:
            began_s = time.monotonic()
            reply = http.post("/v1/completions", content=json.dumps({**COMPLETION, **change}))
            assert refused(reply)["param"] == param, change
            assert time.monotonic() - began_s < 5
        assert [stream.result() for stream in streams] == [alone, alone]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b"7", b"\xff\xfe", b"null", b"{}", b"[" * 100_000])
def test_a_body_that_is_no_request_is_refused(http: httpx.Client, path: str, content: bytes):
    refused(http.post(path, content=content))


def test_a_body_over_the_limit_is_refused_and_the_next_is_served(server: Command, http: httpx.Client):
    content = json.dumps({**COMPLETION, "user": "x" * (5 << 20)})
    with server.http() as other:
        refused(other.post("/v1/completions", content=content), 413)
    assert http.post("/v1/completions", json=COMPLETION).status_code == 200


def test_a_wrong_key_opens_nothing(server: Command):
    for key in (None, "-", "sk-wrong-key", KEYS["harbour"][0] + "x"):
        with server.http(key) as http:
            errors = {
                http.request(*route).text for route in (("GET", "/v1/models"), ("POST", PATHS[0]), ("GET", "/no"))
            }
            assert len(errors) == 1
            assert refused(http.get("/metrics"), 401)["code"] == "invalid_api_key"


def test_another_tenants_app_and_a_missing_one_look_alike(server: Command):
    for tenant in TENANTS:
        other = "public/ask" if tenant != "public" else "berlin/chat"
        with server.http(KEYS[tenant][0]) as http:
            assert {entry["owned_by"] for entry in http.get("/v1/models").json()["data"]} == {tenant}
            for path in PATHS:
                answers = []
                for model in (other, f"{tenant}/none", "nobody/none"):
                    reply = http.post(path, json={**COMPLETION, "model": model})
                    assert refused(reply, 404)["code"] == "model_not_found"
                    own = ("date", "content-length", "x-request-id")
                    headers = {name: value for name, value in reply.headers.items() if name not in own}
                    answers.append((reply.text.replace(model, "MODEL"), headers))
                assert answers[0] == answers[1] == answers[2]


def test_a_client_that_leaves_takes_its_work_with_it(http: httpx.Client):
    assert eventually(lambda: metric(http, "num_requests_running") == 0, 10)
    before = metric(http, "generation_tokens_total")
    body = {**COMPLETION, "max_tokens": 500, "ignore_eos": True, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as reply:
        chunks = events(reply.iter_lines())
        for _ in range(5):
            next(chunks)
        assert metric(http, "num_requests_running") == 1
        assert metric(http, "kv_pages_free") < metric(http, "kv_pages")
    left_s = time.monotonic()
    # A step and a second; the bound leaves room for a machine that does other things.
    assert eventually(lambda: metric(http, "num_requests_running") == 0, 5)
    assert eventually(lambda: metric(http, "kv_pages_free") == metric(http, "kv_pages"), 5)
    stopped = metric(http, "generation_tokens_total")
    assert stopped - before < 500
    assert time.monotonic() - left_s < 10
    http.post("/v1/completions", json={**COMPLETION, "ignore_eos": True})
    assert metric(http, "generation_tokens_total") == stopped + 4, "nothing of the first went on"
    assert re.search(r'finished_reason="cancelled"', http.get("/metrics").text)
