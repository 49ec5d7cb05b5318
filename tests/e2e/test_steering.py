"""Penalties, biases and least lengths on the compiled samples: alone, among others, and over an engine's death."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.e2e.fleet import MODEL_OF, Command, chat, events, metric

STORY = "Tell me a story about a bear."


def completion(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"model": "public/ask", "prompt": "The bear", "max_tokens": 24, "temperature": 0, "return_token_ids": True}
    reply = http.post("/v1/completions", json={**body, **fields})
    assert reply.status_code == 200, reply.text
    return dict(reply.json()["choices"][0])


def test_a_bias_decides_and_a_ban_holds(fragile: Command):
    with fragile.http() as http:
        plain = completion(http)["token_ids"]
        assert completion(http, logit_bias={"77": 100})["token_ids"] == [77] * 24
        banned = completion(http, logit_bias={str(plain[0]): -100}, ignore_eos=True)["token_ids"]
        assert plain[0] not in banned


def test_a_frequency_penalty_ends_repetition(fragile: Command):
    with fragile.http() as http:
        repeated = {"logit_bias": {"77": 15}, "ignore_eos": True, "max_tokens": 40}
        count = completion(http, **repeated)["token_ids"].count(77)
        fewer = completion(http, **repeated, frequency_penalty=2)["token_ids"].count(77)
        assert count > 20
        assert fewer < count / 2
        prompt = completion(http, **repeated, prompt=[1, 77, 77], repetition_penalty=50)["token_ids"]
        assert 77 not in prompt  # repetition looks at prompts, too


def test_a_least_length_keeps_the_end_away(fragile: Command):
    with fragile.http() as http:
        question = [{"role": "user", "content": "What is the capital of France?"}]
        body = {"model": "public/ask", "messages": question, "temperature": 0, "max_tokens": 60}
        short = http.post("/v1/chat/completions", json=body).json()["usage"]["completion_tokens"]
        long = http.post("/v1/chat/completions", json={**body, "min_tokens": short + 10}).json()
        assert short < long["usage"]["completion_tokens"]
        assert long["usage"]["completion_tokens"] >= short + 10


def decided(http: httpx.Client) -> tuple[dict[str, Any], list[int]]:
    """What the tokens so far decide, by more than bfloat16 loses: perturbed biases give the same answer."""
    for first in range(70, 200, 7):
        steered = {"frequency_penalty": 2, "repetition_penalty": 1.1, "ignore_eos": True, "max_tokens": 60}

        def biased(off: float, first: int = first) -> dict[str, float]:
            return {str(first): 90 + off, str(first + 1): 89.2, str(first + 2): 91.1 - off, str(first + 3): 90.3}

        answers = [completion(http, **steered, logit_bias=biased(off))["token_ids"] for off in (0.0, 0.25, -0.25)]
        if answers[0] == answers[1] == answers[2] and len(set(answers[0])) == 4:
            return {**steered, "logit_bias": biased(0.0)}, answers[0]
    raise AssertionError("nothing is decided")


def test_a_steered_answer_is_the_same_among_others_and_when_the_engine_dies(fragile: Command):
    with fragile.http() as http:
        steered, alone = decided(http)
        some_came = threading.Event()

        def streamed() -> list[int]:
            body = {"model": "public/ask", "prompt": "The bear", "stream": True, "return_token_ids": True}
            ids: list[int] = []
            with http.stream("POST", "/v1/completions", json={**body, "temperature": 0, **steered}) as reply:
                for chunk in events(reply.iter_lines()):
                    ids += chunk["choices"][0].get("token_ids", [])
                    if len(ids) > 4:
                        some_came.set()
            return ids

        restarts = metric(http, "engine_restarts_total")
        with ThreadPoolExecutor(8) as pool:
            others = [pool.submit(http.post, "/v1/chat/completions", json=chat(app, STORY)) for app in MODEL_OF]
            ids = pool.submit(streamed)
            assert some_came.wait(30)
            fragile.kill_engine()
            assert ids.result() == alone
            assert all(other.result().status_code == 200 for other in others)
        assert metric(http, "engine_restarts_total") == restarts + 1
