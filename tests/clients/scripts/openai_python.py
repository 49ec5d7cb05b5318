"""The openai package, all calls that docs/api.md promises. Reads BLOCKC_URL, BLOCKC_KEY; ends with 0 if all is well."""

from __future__ import annotations

import json
import os
from typing import Any, Literal

import openai
from pydantic import BaseModel

URL, KEY = os.environ["BLOCKC_URL"], os.environ["BLOCKC_KEY"]
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class City(BaseModel):
    capital: Literal["Paris", "Rome"]
    is_large: bool


def main() -> None:
    client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
    names = {model.id for model in client.models.list()}
    assert {"berlin/chat", "clients/tools", "clients/find"} <= names, names
    assert client.models.retrieve("berlin/chat").owned_by == "berlin"

    asked: dict[str, Any] = {"model": "berlin/chat", "messages": QUESTION, "max_tokens": 40, "temperature": 0}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2, n=2)
    text = whole.choices[0].message.content
    assert len(whole.choices) == 2, whole
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage is not None
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    with client.chat.completions.stream(**asked) as stream:
        assert stream.get_final_completion().choices[0].message.content == text

    words: dict[str, Any] = {"model": "public/ask", "prompt": "The capital", "max_tokens": 12, "temperature": 0}
    once = client.completions.create(**words, logprobs=1).choices[0]
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**words, stream=True)) == once.text
    assert len(once.logprobs.token_logprobs) == len(once.logprobs.tokens) > 0

    parsed = client.chat.completions.parse(
        model="public/ask", messages=QUESTION, response_format=City, max_tokens=200, temperature=0
    ).choices[0]
    assert isinstance(parsed.message.parsed, City), parsed

    forced = client.chat.completions.create(
        model="clients/tools", messages=QUESTION, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False,
        max_tokens=200, temperature=0,
    ).choices[0]  # fmt: skip
    (call,) = forced.message.tool_calls
    assert (forced.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    answered = [*QUESTION, forced.message, {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}]
    client.chat.completions.create(model="clients/tools", messages=answered, tools=[WEATHER], max_tokens=8)

    vectors = client.embeddings.create(model="clients/find", input=["one", "two"]).data
    plain = client.embeddings.create(model="clients/find", input="one", encoding_format="float").data
    assert max(abs(a - b) for a, b in zip(vectors[0].embedding, plain[0].embedding, strict=True)) < 1e-5

    for call_it, expected in [
        (lambda: client.with_options(api_key="sk-wrong").models.list(), openai.AuthenticationError),
        (lambda: client.models.retrieve("berlin/none"), openai.NotFoundError),
        (lambda: client.chat.completions.create(model="x/y", messages=QUESTION), openai.NotFoundError),
        (lambda: client.chat.completions.create(**{**asked, "temperature": 9}), openai.BadRequestError),
        (lambda: client.embeddings.create(model="berlin/chat", input="x"), openai.BadRequestError),
    ]:
        try:
            call_it()
        except expected:
            pass
        else:
            raise AssertionError(expected)
    print("openai", openai.__version__)


main()
