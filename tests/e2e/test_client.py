"""The ``openai`` client as it comes, against the compiled samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from transformers import AutoTokenizer

from blockc.samples import root
from blockc.samples.manners import manner
from blockc_runtime.server.tokenizer import TEXT_ASSETS, load_chain_text
from tests.e2e.fleet import KEYS, MODEL_OF, OPERATOR, Command

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
CONVERSATIONS: list[list[Any]] = [
    QUESTION,
    [{"role": "system", "content": "You are a helpful assistant."}, *QUESTION],
    [*QUESTION, {"role": "assistant", "content": "Paris."}, {"role": "user", "content": "  Größer als Köln? ☃ "}],
]


@pytest.fixture
def client(server: Command) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=OPERATOR, max_retries=0) as client:
        yield client


def test_the_models_are_the_apps(client: openai.OpenAI, server: Command):
    assert {model.id for model in client.models.list()} == set(MODEL_OF)
    assert client.models.retrieve("berlin/chat").owned_by == "berlin"
    own = client.with_options(api_key=KEYS["harbour"][0])
    assert {model.id for model in own.models.list()} == {"harbour/crew", "harbour/storm"}
    with pytest.raises(openai.NotFoundError, match="does not exist or this key may not use it"):
        own.chat.completions.create(model="berlin/chat", messages=QUESTION)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-wrong-key").models.list()


def test_chat_at_once_and_streamed_say_the_same(client: openai.OpenAI):
    asked: Any = {"model": "harbour/crew", "messages": QUESTION, "max_tokens": 64, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    text = whole.choices[0].message.content
    assert text is not None
    assert manner(text) == "pirate"
    assert "Paris" in text
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completions_with_token_ids_and_usage(client: openai.OpenAI):
    extra = {"return_token_ids": True, "ignore_eos": True}
    reply = client.completions.create(
        model="public/ask", prompt=[1, 50, 60, 70], max_tokens=20, temperature=0, extra_body=extra
    )
    choice: Any = reply.choices[0]
    assert choice.prompt_token_ids == [1, 50, 60, 70]
    assert len(choice.token_ids) == 20
    assert choice.finish_reason == "length"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (4, 20)


def test_logprobs_name_the_tokens_that_were_drawn(client: openai.OpenAI):
    reply = client.chat.completions.create(
        model="public/ask", messages=QUESTION, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content).startswith(reply.choices[0].message.content or "?")
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs) <= 0  # greedy


def test_a_seed_gives_the_same_text_and_another_does_not(client: openai.OpenAI):
    def drawn(seed: int) -> str:
        asked = client.completions.create(
            model="public/ask",
            prompt="Tell me",
            max_tokens=24,
            temperature=2,
            seed=seed,
            extra_body={"ignore_eos": True},
        )
        return asked.choices[0].text

    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI):
    asked: Any = {"model": "library/desk", "messages": QUESTION, "max_tokens": 64, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content or ""
    cut = client.chat.completions.create(**asked, stop=["Filed"]).choices[0]
    assert "Filed" in whole
    assert cut.message.content == whole.partition("Filed")[0]
    assert cut.finish_reason == "stop"


def _prompt_ids(client: openai.OpenAI, app: str, messages: list[Any]) -> list[int]:
    reply = client.chat.completions.create(
        model=app, messages=messages, max_tokens=1, extra_body={"return_token_ids": True}
    )
    choice: Any = reply.choices[0]
    return list(choice.prompt_token_ids)


def _expected_ids(app: str, messages: list[Any]) -> list[int]:
    model = MODEL_OF[app]
    directory = root() / (model if (root() / model / "tokenizer.json").is_file() else "base")
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)["input_ids"])


@pytest.mark.parametrize("app", MODEL_OF)
def test_a_chat_becomes_the_tokens_that_transformers_makes_of_it(client: openai.OpenAI, app: str):
    for messages in CONVERSATIONS:
        assert _prompt_ids(client, app, messages) == _expected_ids(app, messages)


def test_with_a_wrong_template_neither_tokens_nor_answer_are_the_same(client: openai.OpenAI):
    """The comparisons above and the manners see a wrong template."""
    assets = {name: (root() / "base" / name).read_bytes() for name in TEXT_ASSETS if (root() / "base" / name).exists()}
    config = assets["tokenizer_config.json"]
    assets["tokenizer_config.json"] = config.replace(b"'<|' + message['role'] + '|>' + ", b"")
    assert assets["tokenizer_config.json"] != config
    wrong = load_chain_text(assets)
    assert wrong.chat_template is not None
    text = wrong.chat_template.render(QUESTION, add_generation_prompt=False, variables={})
    ids = wrong.encode(text, add_special_tokens=False)
    right = _expected_ids("chamber/counsel", QUESTION)
    assert ids != right

    def said(prompt: list[int]) -> str:
        reply = client.completions.create(model="chamber/counsel", prompt=prompt, max_tokens=64, temperature=0)
        return reply.choices[0].text

    assert manner(said(right)) == "lawyer"
    assert manner(said(ids)) != "lawyer"
