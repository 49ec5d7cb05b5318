"""``/v1/completions`` and ``/v1/chat/completions`` as OpenAI's own client sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.runtime.server import world
from tests.runtime.server.running import RunningServer
from tests.runtime.server.standin import token_at

PROMPT = [10, 11, 12, 13]


def expected_tokens(count: int, *, chain: int = 0, prompt_length: int = len(PROMPT)) -> list[int]:
    return [token_at(chain, prompt_length + index) for index in range(count)]


def expected_text(count: int, **options: int) -> str:
    return world.tokenizer().decode(expected_tokens(count, **options))


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models_are_tenant_and_app(client):
    assert [model.id for model in client.models.list()] == [f"{t}/{a}" for t, a in world.APPS]
    assert client.models.retrieve("acme/code").owned_by == "acme"


def test_a_completion(client):
    answer = client.completions.create(model="acme/chat", prompt=PROMPT, max_tokens=40)
    assert answer.choices[0].text == expected_text(40)
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 40)
    assert answer.usage.total_tokens == 44


def test_sixteen_tokens_are_the_default(client):
    assert client.completions.create(model="acme/chat", prompt=PROMPT).usage.completion_tokens == 16


def test_the_stream_is_the_same_text(client):
    stream = client.completions.create(
        model="acme/chat", prompt=PROMPT, max_tokens=200, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    *chunks, usage = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected_text(200)
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    assert not any(chunk.choices[0].finish_reason for chunk in chunks[:-1])
    assert usage.choices == []
    assert usage.usage.completion_tokens == 200


def test_every_chunk_tells_what_was_used_so_far_if_asked(client):
    stream = client.completions.create(
        model="acme/chat", prompt=PROMPT, max_tokens=30, n=2, stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )  # fmt: skip
    counts = [chunk.usage.completion_tokens for chunk in stream]
    assert counts == sorted(counts)
    assert counts[-1] == counts[-2] == 60
    assert len(counts) > 2


def test_apps_have_their_own_chains(client):
    answer = client.completions.create(model="birch/chat", prompt=PROMPT, max_tokens=20)
    assert answer.choices[0].text == expected_text(20, chain=2)


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_are_several_choices(client, stream):
    prompts = [[5] * 3, [6] * 9, [7] * 4]
    options = {"model": "acme/chat", "prompt": prompts, "max_tokens": 12}
    if stream:
        texts = ["", "", ""]
        for chunk in client.completions.create(**options, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
    else:
        answer = client.completions.create(**options)
        texts = [choice.text for choice in sorted(answer.choices, key=lambda c: c.index)]
        assert answer.usage.prompt_tokens == 16
    assert texts == [expected_text(12, prompt_length=len(prompt)) for prompt in prompts]


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers_to_each_of_several_prompts(client, stream):
    prompts = [[5] * 3, [6] * 9]
    options = {"model": "acme/chat", "prompt": prompts, "max_tokens": 12, "n": 3, "stream": stream}
    texts, usage = [""] * 6, None
    answer = client.completions.create(**options, **({"stream_options": {"include_usage": True}} if stream else {}))
    for chunk in answer if stream else [answer]:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [expected_text(12, prompt_length=length) for length in (3, 3, 3, 9, 9, 9)]
    assert (usage.prompt_tokens, usage.completion_tokens) == (12, 72)  # a prompt is counted once


def test_the_best_of_several(client):
    answer = client.completions.create(model="acme/chat", prompt=[[5] * 3, [6] * 9], max_tokens=8, best_of=4, n=2)
    assert [choice.text for choice in answer.choices] == [expected_text(8, prompt_length=n) for n in (3, 3, 9, 9)]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(choice.logprobs is None for choice in answer.choices)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (12, 64)


@pytest.mark.parametrize("stream", [False, True])
def test_echo(client, stream):
    for prompt in ("the quick", world.tokenizer().encode("the quick").ids):
        length = len(world.tokenizer().encode("the quick").ids)
        answer = client.completions.create(model="acme/chat", prompt=prompt, max_tokens=9, echo=True, stream=stream)
        text = "".join(chunk.choices[0].text for chunk in (answer if stream else [answer]))
        assert text == "the quick" + expected_text(9, prompt_length=length)


@pytest.mark.parametrize("stream", [False, True])
def test_echo_alone(client, stream):
    answer = client.completions.create(model="acme/chat", prompt="the quick", max_tokens=0, echo=True, stream=stream)
    chunks = list(answer) if stream else [answer]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "the quick"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert stream or chunks[0].usage.completion_tokens == 0


def test_a_stop_string_counts_behind_the_least_length_only(client):
    text = expected_text(200)
    stop = text[20:23]
    asked = {"model": "acme/chat", "prompt": PROMPT, "max_tokens": 200, "stop": stop}
    early = client.completions.create(**asked).choices[0].text
    late = client.completions.create(**asked, extra_body={"min_tokens": 190}).choices[0].text
    assert early == text[:20]
    assert late.startswith(text[:100])


def test_several_chat_answers(client):
    answer = client.chat.completions.create(
        model="acme/chat", messages=[{"role": "user", "content": "hi"}], max_tokens=8, n=3
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 1
    assert answer.usage.completion_tokens == 24


def test_text_prompts_are_tokenised(client):
    for prompt in ("the quick", ["the quick", "the quick"]):
        answer = client.completions.create(model="acme/chat", prompt=prompt, extra_body={"return_token_ids": True})
        ids = world.tokenizer().encode("the quick").ids
        assert all(choice.prompt_token_ids == ids for choice in answer.choices)


def test_token_ids_and_logprobs(client):
    answer = client.completions.create(
        model="acme/chat", prompt=PROMPT, max_tokens=9, logprobs=2,
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    choice = answer.choices[0]
    assert choice.token_ids == expected_tokens(9)
    assert choice.prompt_token_ids == PROMPT
    assert choice.logprobs.token_logprobs == [-0.5] * 9
    assert all(1 <= len(top) <= 3 for top in choice.logprobs.top_logprobs)
    assert choice.logprobs.text_offset[0] == 0
    assert len(choice.logprobs.tokens) == len(choice.logprobs.text_offset) == 9


def test_streamed_logprobs_and_ids_are_complete(client):
    ids, logprobs, offsets = [], [], []
    for chunk in client.completions.create(
        model="acme/chat", prompt=PROMPT, max_tokens=30, logprobs=0, stream=True,
        extra_body={"return_token_ids": True},
    ):  # fmt: skip
        ids += getattr(chunk.choices[0], "token_ids", [])
        if chunk.choices[0].logprobs:
            logprobs += chunk.choices[0].logprobs.token_logprobs
            offsets += chunk.choices[0].logprobs.text_offset
    assert ids == expected_tokens(30)
    assert len(logprobs) == 30
    assert offsets == sorted(offsets)


def test_a_stop_string_ends_the_text_before_it(client, server):
    text = expected_text(200)
    stop = text[50:53]
    cut = text.index(stop)
    for stream in (False, True):
        for keep in (False, True):
            answer = client.completions.create(
                model="acme/chat", prompt=PROMPT, max_tokens=200, stop=[stop, "never"],
                stream=stream, extra_body={"include_stop_str_in_output": keep},
            )  # fmt: skip
            chunks = list(answer) if stream else [answer]
            shown = "".join(chunk.choices[0].text for chunk in chunks)
            assert shown == text[: cut + (len(stop) if keep else 0)]
            assert chunks[-1].choices[0].finish_reason == "stop"
            assert chunks[-1].choices[0].stop_reason == stop


def test_a_stop_token_is_counted_and_not_shown(client):
    tokens = expected_tokens(60)
    stop = tokens[30]
    first = tokens.index(stop)
    answer = client.completions.create(
        model="acme/chat", prompt=PROMPT, max_tokens=60, extra_body={"stop_token_ids": [stop]}
    )
    choice = answer.choices[0]
    assert choice.text == world.tokenizer().decode(tokens[:first])
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
    assert answer.usage.completion_tokens == first + 1


def test_chat(client):
    ids = world.tokenizer().encode("<|im_start|>user\nhi there<|im_end|>\n<|im_start|>assistant\n").ids
    for content in ("hi there", [{"type": "text", "text": "hi there"}]):
        answer = client.chat.completions.create(
            model="acme/chat", messages=[{"role": "user", "content": content}],
            max_completion_tokens=25,
        )  # fmt: skip
        assert answer.usage.prompt_tokens == len(ids)
        assert answer.choices[0].message.content == expected_text(25, prompt_length=len(ids))
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].finish_reason == "length"


def test_chat_streams_role_content_end(client):
    chunks = list(
        client.chat.completions.create(
            model="acme/chat", messages=[{"role": "user", "content": "hi"}], max_tokens=30,
            stream=True, logprobs=True, top_logprobs=2, stream_options={"include_usage": True},
        )
    )  # fmt: skip
    *chunks, usage = chunks
    assert chunks[0].choices[0].delta.role == "assistant"
    entries = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert len(entries) == 30
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    shown = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    expected = b"".join(bytes(entry.bytes) for entry in entries).decode("utf-8", "replace")
    assert shown == expected
    assert chunks[-1].choices[0].finish_reason == "length"
    assert usage.usage.completion_tokens == 30


def test_without_a_limit_chat_goes_on_to_the_models_length(client):
    answer = client.chat.completions.create(
        model="acme/chat", messages=[{"role": "user", "content": "hi"}],
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    assert answer.usage.total_tokens == world.MAX_MODEL_LEN


def test_the_form_of_events(http: httpx.Client):
    body = {"model": "acme/chat", "prompt": PROMPT, "max_tokens": 50, "stream": True}
    answer = http.post("/v1/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.text.endswith("data: [DONE]\n\n")
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    for event in events:
        assert event.startswith("data: ")
        assert "\n" not in event
        chunk = json.loads(event.removeprefix("data: "))
        assert chunk["object"] == "text_completion"
        assert chunk["model"] == "acme/chat"
        assert "usage" not in chunk
    assert len({json.loads(event[6:])["id"] for event in events}) == 1


def test_neutral_values_of_what_is_unsupported_are_fine(http: httpx.Client):
    body = {
        "model": "acme/chat", "prompt": PROMPT, "n": 1, "best_of": 1, "echo": False,
        "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "suffix": None,
        "user": "someone", "logprobs": None, "stream_options": None, "unknown": None,
        "repetition_penalty": 1.0, "min_p": 0.0, "top_k": -1,
    }  # fmt: skip
    assert http.post("/v1/completions", json=body).status_code == 200
    chat = {
        "model": "acme/chat", "max_tokens": 3, "tools": [], "tool_choice": "none", "n": 1,
        "response_format": {"type": "text"}, "parallel_tool_calls": True,
        "messages": [{"role": "user", "content": "hi", "name": None, "tool_calls": None}],
    }  # fmt: skip
    assert http.post("/v1/chat/completions", json=chat).status_code == 200
