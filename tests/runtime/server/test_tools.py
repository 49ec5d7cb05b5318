"""Calls of tools: read from an output however it is cut, and asked for by a grammar."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc_runtime import structured
from blockc_runtime.server.tools import CLOSE, OPEN, ToolCall, ToolReader, Tools, form_of, read_whole

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tools(form: Any = "tags") -> Tools:
    return Tools(parameters={"weather": WEATHER, "time": {}}, form=form, arguments_key="arguments", is_parallel=True)


def call(name: str = "weather", key: str = "arguments", **arguments: object) -> str:
    return json.dumps({"name": name, key: arguments})


def tagged(text: str) -> str:
    return f"{OPEN}\n{text}\n{CLOSE}"


def seen(text: str, form: str = "tags") -> tuple[str, list[tuple[str, Any]]]:
    words, calls = read_whole(tools(form), text)
    return words, [(each.name, json.loads(each.arguments)) for each in calls]


TWO = f"Let me see.\n{tagged(call(city='Köln'))}\n{tagged(call('time'))}\n"


def test_tagged_calls():
    assert seen(tagged(call(city="Köln"))) == ("", [("weather", {"city": "Köln"})])
    assert seen(TWO) == ("Let me see.\n", [("weather", {"city": "Köln"}), ("time", {})])
    assert seen(f"{tagged(call('time'))}\n And so on.") == ("\n And so on.", [("time", {})])
    assert seen(f"{OPEN}{call('time')}") == ("", [("time", {})])  # its end is missing


@pytest.mark.parametrize(
    "text",
    [
        "no calls here <tool",
        tagged("{not json}"),
        tagged(call("unknown")),
        tagged('{"name": "weather", "arguments": [1]}'),
        tagged('{"arguments": {}}'),
        tagged("7"),
        f"{OPEN} and no end",
        f"{CLOSE} first",
        tagged("[" * 5000),
    ],
)
def test_what_is_no_call_stays_text(text: str):
    assert seen(text) == (text, [])


def test_an_object_as_a_whole():
    for key in ("arguments", "parameters"):
        assert seen(call(key=key, city="Rome"), "object") == ("", [("weather", {"city": "Rome"})])
    for text in ("Hello {", '{"name": "unknown", "arguments": {}}', '{"city": 1}', "{", "", "  ", tagged(call())):
        assert seen(text, "object") == (text, [])


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(
        [TWO, tagged(call("unknown")), "a < b <tool_ <tool_call", f"{tagged(call('time'))} x", call(city="x")]
    ),
    st.lists(st.integers(0, 120), max_size=12),
    st.sampled_from(["tags", "object"]),
)
def test_the_cuts_change_nothing(text: str, cuts: list[int], form: str):
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    reader = ToolReader(tools(form))
    parts = [part for a, b in pairwise(edges) for part in reader.feed(text[a:b])]
    parts += reader.finish()
    calls = [(part.name, json.loads(part.arguments)) for part in parts if isinstance(part, ToolCall)]
    assert ("".join(part for part in parts if isinstance(part, str)), calls) == seen(text, form)


def test_text_is_shown_as_soon_as_it_is_certain():
    reader = ToolReader(tools())
    assert reader.feed("Hello <") == ["Hello "]
    assert reader.feed("b>") == ["<b>"]
    assert reader.feed("<tool_call>") == []


def test_the_template_says_which_form():
    assert form_of("... <tool_call> ...") == ("tags", "arguments")
    assert form_of('... {"name": function name, "parameters": dict} ...') == ("object", "parameters")
    assert form_of("{{ tools }}") == ("object", "arguments")


def test_schemas_of_calls_are_followed_and_bad_ones_refused():
    schema = tools().schema(["weather", "time"])
    assert structured.json_schema(schema)
    assert "tool_call" in structured.tagged(schema, OPEN, CLOSE, more=3)
    with pytest.raises(structured.GrammarError, match="uniqueItems"):
        structured.tagged({"uniqueItems": True}, OPEN, CLOSE, more=0)


TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tools": [TOOL]}, "tools"),  # this template has no place for them
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "retrieval", "function": {"name": "x"}}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [TOOL] * 1000}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes"}, None),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, "tool_choice"),
    ],
)
def test_refusals(http: httpx.Client, changes: dict[str, Any], param: str | None):
    body = {"model": "acme/chat", "messages": [{"role": "user", "content": "hi"}], **changes}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    if param is not None:
        assert answer.json()["error"]["param"] == param


def test_arguments_of_earlier_calls_have_to_be_objects(http: httpx.Client):
    for arguments in ("{", "[1]", '{"city": "\\ud800"}', '{"city": NaN}', '{"city": ' + "[" * 900 + "]" * 900 + "}"):
        made = [{"id": "c", "type": "function", "function": {"name": "weather", "arguments": arguments}}]
        messages = [{"role": "assistant", "content": "", "tool_calls": made}]
        answer = http.post("/v1/chat/completions", json={"model": "acme/chat", "messages": messages})
        assert answer.json()["error"]["param"] == "messages.0.tool_calls.0.function.arguments"
