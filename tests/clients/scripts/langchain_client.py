"""LangChain's ChatOpenAI, OpenAI and OpenAIEmbeddings. Reads BLOCKC_URL and BLOCKC_KEY; ends with 0 if all is well."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any, Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

ACCESS: dict[str, Any] = {"base_url": f"{os.environ['BLOCKC_URL']}/v1", "api_key": os.environ["BLOCKC_KEY"]}
QUESTION = "What is the capital of France?"


class City(BaseModel):
    capital: Literal["Paris", "Rome"]


@tool
def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return city


def main() -> None:
    chat = ChatOpenAI(model="berlin/chat", temperature=0, max_tokens=40, max_retries=0, **ACCESS)
    text = chat.invoke(QUESTION).content
    assert text
    assert "".join(str(part.content) for part in chat.stream(QUESTION)) == text
    assert [answer.content for answer in chat.batch([QUESTION] * 3)] == [text] * 3
    shaped = ChatOpenAI(model="public/ask", max_tokens=60, max_retries=0, **ACCESS).with_structured_output(City)
    assert isinstance(shaped.invoke(QUESTION), City)
    tooled = ChatOpenAI(model="clients/tools", max_tokens=200, temperature=0, max_retries=0, **ACCESS)
    bound = tooled.bind_tools([weather], tool_choice="required", parallel_tool_calls=False, strict=True)
    (call,) = bound.invoke(QUESTION).tool_calls
    assert call["name"] == "weather"
    assert call["args"]["city"] in ("Paris", "Rome")
    assert OpenAI(model="public/ask", temperature=0, max_tokens=8, max_retries=0, **ACCESS).invoke("The capital")
    # Unasked, it splits texts by a tokenizer of OpenAI's, which it fetches, and sends token ids of that.
    found = OpenAIEmbeddings(model="clients/find", check_embedding_ctx_length=False, max_retries=0, **ACCESS)
    many = found.embed_documents([f"text {number}" for number in range(300)])
    assert len(many) == 300
    assert max(abs(a - b) for a, b in zip(many[7], found.embed_query("text 7"), strict=True)) < 1e-3
    print("langchain-openai", version("langchain-openai"))


main()
