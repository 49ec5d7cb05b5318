"""Answers kept to schemas by the compiled samples, streamed and not, and over an engine's death."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.e2e.fleet import MODEL_OF, OPERATOR, Command, metric

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "country": {"type": "string", "pattern": "^[A-Z][a-z]{2,12}$"},
        "capital": {"enum": ["Paris", "Berlin"]},
        "rivers": {"type": "array", "items": {"type": "string", "maxLength": 8}, "minItems": 2, "maxItems": 3},
        "size": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["country", "capital", "rivers", "size"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}


@pytest.fixture
def client(fragile: Command) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fragile.url}/v1", api_key=OPERATOR, max_retries=0) as client:
        yield client


def check_city(text: str | None) -> None:
    value = json.loads(text or "")
    assert set(value) == {"country", "capital", "rivers", "size"}
    assert value["capital"] in ("Paris", "Berlin")
    assert 2 <= len(value["rivers"]) <= 3
    assert 1 <= value["size"] <= 99


def test_every_fine_tune_in_one_batch_follows_the_schema(client: openai.OpenAI):
    def ask(app: str, seed: int) -> Any:
        return client.chat.completions.create(
            model=app, messages=QUESTION, response_format=FORMAT, seed=seed, temperature=1.2, max_tokens=300
        ).choices[0]

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, app, seed) for app in MODEL_OF for seed in range(2)]
        for answer in answers:
            assert answer.result().finish_reason == "stop"
            check_city(answer.result().message.content)


def test_the_stream_is_the_same_text(client: openai.OpenAI):
    asked: Any = {"model": "public/ask", "messages": QUESTION, "response_format": FORMAT, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    chunks = client.chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    check_city(whole)


def test_other_forms(client: openai.OpenAI):
    def said(**extra: Any) -> str:
        reply = client.completions.create(
            model="public/ask", prompt="The capital of France is", max_tokens=64, temperature=0, extra_body=extra
        )
        assert reply.choices[0].finish_reason == "stop"
        return reply.choices[0].text

    assert said(guided_choice=["Rome", "Madrid"]) in ("Rome", "Madrid")
    assert said(structured_outputs={"regex": "[0-9]{3}-[xy]"})[3] == "-"
    assert said(guided_grammar='start: "<" /[a-c]/ ">"')[::2] == "<>"
    assert isinstance(
        json.loads(said(guided_json={"type": "array", "items": {"type": "boolean"}, "maxItems": 3})), list
    )


def test_an_engine_that_dies_loses_nothing_of_the_structure(client: openai.OpenAI, fragile: Command):
    asked: Any = {"model": "public/ask", "messages": QUESTION, "response_format": FORMAT, "temperature": 1, "seed": 5}
    with fragile.http() as http:
        restarts = metric(http, "engine_restarts_total")
        some_came = threading.Event()

        def streamed() -> str:
            text = ""
            for chunk in client.chat.completions.create(**asked, stream=True):
                text += chunk.choices[0].delta.content or ""
                if len(text) > 15:
                    some_came.set()
            return text

        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(streamed)
            assert some_came.wait(30)
            fragile.kill_engine()
            check_city(answer.result())
        assert metric(http, "engine_restarts_total") == restarts + 1


def test_a_schema_that_cannot_be_followed_is_refused_by_name(client: openai.OpenAI):
    refused: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"uniqueItems": True}}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
        client.chat.completions.create(model="public/ask", messages=QUESTION, response_format=refused)
    assert caught.value.param == "response_format.json_schema.schema"
