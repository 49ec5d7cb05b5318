"""Tools through a template that knows them: a sample whose template says how to call, asked through ``openai``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from blockc.cli import main
from blockc_runtime.server.tools import CLOSE, OPEN
from tests.e2e.fleet import OPERATOR, Command, copied, serving

FORMS = {"tags": f"Call by {OPEN}{{...}}{CLOSE}.", "object": "Call by one object."}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "maxProperties": 0}}}
QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module", params=FORMS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    folder = copied(tmp_path_factory.mktemp("tools") / "fleet", "base", "german")
    template = (
        "{{ bos_token }}{% if tools %}<|system|>"
        + FORMS[request.param]
        + "{{ tools | tojson }}{{ eos_token }}{% endif %}"
        "{% for message in messages %}{{ '<|' + message.role + '|>' + (message.content or '') }}"
        "{% for call in message.tool_calls or [] %}{{ call.function.arguments.items() | list }}{% endfor %}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    (folder / "base" / "chat_template.jinja").write_text(template)
    plan = folder / "plan.json"
    assert main(["compile", str(folder / "small.blk"), "-o", str(plan)]) == 0
    with serving(plan, folder / "server", keys=False) as command:
        yield command.ready()
        assert "Traceback" not in command.log


@pytest.fixture
def client(server: Command) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=OPERATOR, max_retries=0) as client:
        yield client


def asked(**fields: Any) -> Any:
    return {"model": "berlin/chat", "messages": QUESTION, "tools": [WEATHER, CLOCK], "temperature": 0, **fields}


def check(call: Any) -> None:
    assert call.id.startswith("call_")
    arguments = json.loads(call.function.arguments)
    if call.function.name == "clock":
        assert arguments == {}
    else:
        assert call.function.name == "weather"
        assert arguments["city"] in ("Paris", "Rome")
        assert 1 <= arguments["days"] <= 9


def test_a_call_that_has_to_come(client: openai.OpenAI):
    choice = client.chat.completions.create(**asked(tool_choice="required", parallel_tool_calls=False)).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or []
    check(call)


def test_the_stream_has_the_same_call(client: openai.OpenAI):
    fields = asked(tool_choice={"type": "function", "function": {"name": "weather"}})
    (whole,) = client.chat.completions.create(**fields).choices[0].message.tool_calls or []
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**fields, stream=True)]
    (streamed,) = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    assert (streamed.index, streamed.type) == (0, "function")
    check(streamed)
    assert streamed.function.arguments == whole.function.arguments  # type: ignore[union-attr]
    assert chunks[-1].finish_reason == "tool_calls"
    assert not any(chunk.delta.content for chunk in chunks)


def test_a_model_that_calls_nothing_answers_in_text(client: openai.OpenAI):
    for choice in ("auto", "none"):
        message = client.chat.completions.create(**asked(tool_choice=choice, max_tokens=20)).choices[0].message
        assert message.content
        assert message.tool_calls is None


def test_tools_are_shown_to_the_model_and_calls_come_back_to_it(client: openai.OpenAI, server: Command):
    with server.http() as http:
        made = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]
        messages = [
            *QUESTION,
            {"role": "assistant", "content": None, "tool_calls": made},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ]
        body = {"model": "berlin/chat", "messages": messages, "tools": [CLOCK]}
        tokens = http.post("/tokenize", json=body).json()["tokens"]
        text = http.post("/detokenize", json={"model": "berlin/chat", "tokens": tokens}).json()["prompt"]
        assert "clock" in text
        assert "[('city', 'Rome')]" in text
        assert "rain" in text


def test_what_cannot_be_asked_for(client: openai.OpenAI):
    for fields, param in [
        (asked(tool_choice={"type": "function", "function": {"name": "other"}}), "tool_choice.function.name"),
        (asked(tools=[WEATHER, WEATHER]), "tools.1.function.name"),
        (asked(tool_choice="required", response_format={"type": "json_object"}), "response_format"),
    ]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**fields)
        assert caught.value.param == param
