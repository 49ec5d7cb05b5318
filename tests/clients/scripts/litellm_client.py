"""LiteLLM's `openai` provider. Reads BLOCKC_URL and BLOCKC_KEY; ends with 0 if all is well."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

import litellm

litellm.telemetry = False
ACCESS = {"api_base": f"{os.environ['BLOCKC_URL']}/v1", "api_key": os.environ["BLOCKC_KEY"]}
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


def main() -> None:
    asked: dict[str, Any] = {"model": "openai/berlin/chat", "messages": QUESTION, "max_tokens": 40, "temperature": 0}
    text = litellm.completion(**asked, **ACCESS).choices[0].message.content
    parts = litellm.completion(**asked, **ACCESS, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == text
    words = litellm.text_completion(
        model="text-completion-openai/public/ask", prompt="The capital", max_tokens=8, temperature=0, **ACCESS
    )
    assert words.choices[0].text
    vectors = litellm.embedding(model="openai/clients/find", input=["one", "two"], **ACCESS)
    assert len(vectors.data) == 2
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "maxProperties": 0}}}
    called = litellm.completion(
        model="openai/clients/tools", messages=QUESTION, tools=[tool], tool_choice="required",
        parallel_tool_calls=False, max_tokens=200, temperature=0, **ACCESS,
    )  # fmt: skip
    assert called.choices[0].message.tool_calls[0].function.name == "weather"
    for changes, expected in [
        ({"model": "openai/x/y"}, litellm.NotFoundError),
        ({"temperature": 9}, litellm.BadRequestError),
        ({"api_key": "sk-wrong"}, litellm.AuthenticationError),
    ]:
        try:
            litellm.completion(**{**ACCESS, **asked, **changes}, num_retries=0)
        except expected:
            pass
        else:
            raise AssertionError(expected)
    print("litellm", version("litellm"))


main()
