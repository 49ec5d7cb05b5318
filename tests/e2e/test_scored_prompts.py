"""Log probabilities of prompts, as evaluation harnesses ask for them, against transformers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from blockc.samples import root
from tests.e2e.fleet import OPERATOR, Command

TEXT = "The capital of France is Paris. The capital of Germany is Berlin."


@pytest.fixture
def client(server: Command) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=OPERATOR, max_retries=0) as client:
        yield client


def expected(ids: list[int]) -> torch.Tensor:
    """Log probabilities of all tokens at each place but the last."""
    model = AutoModelForCausalLM.from_pretrained(root() / "base", dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1].float()
    return logits.log_softmax(-1)


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_they_are_the_models(client: openai.OpenAI, max_tokens: int):
    tokenizer: Any = AutoTokenizer.from_pretrained(root() / "base")
    ids = tokenizer(TEXT)["input_ids"]
    reply = client.completions.create(
        model="public/ask", prompt=TEXT, echo=True, logprobs=3, max_tokens=max_tokens, temperature=0
    )
    choice = reply.choices[0]
    assert choice.text.startswith(TEXT)
    assert choice.logprobs is not None
    assert reply.usage is not None
    count = len(ids) + reply.usage.completion_tokens
    values, tops = choice.logprobs.token_logprobs, choice.logprobs.top_logprobs
    assert values is not None
    assert tops is not None
    assert len(values) == len(tops) == len(choice.logprobs.tokens or []) == count
    assert values[0] is None
    assert tops[0] is None
    own = expected(ids)
    wanted = own.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert torch.allclose(torch.tensor(values[1 : len(ids)]), wanted, atol=0.15)  # bfloat16
    for place, top in enumerate(tops[1 : len(ids)]):
        assert max(top.values()) == pytest.approx(float(own[place].max()), abs=0.15)


def test_in_one_batch_and_twice_they_are_those_of_each_alone(client: openai.OpenAI):
    texts = [TEXT, TEXT[:30], "A bear.", TEXT]

    def scored(prompt: Any) -> list[list[float | None]]:
        reply = client.completions.create(model="public/ask", prompt=prompt, echo=True, logprobs=0, max_tokens=0)
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 0
        return [choice.logprobs.token_logprobs or [] for choice in reply.choices if choice.logprobs]

    alone = [scored(text)[0] for text in texts]
    with ThreadPoolExecutor(4) as pool:
        for answer in [pool.submit(scored, texts) for _ in range(4)]:
            for values, own in zip(answer.result(), alone, strict=True):
                assert values[1:] == pytest.approx(own[1:], abs=0.15)


def test_several_answers_to_a_scored_prompt(client: openai.OpenAI):
    reply = client.completions.create(
        model="public/ask", prompt=["A bear.", TEXT], echo=True, logprobs=1, max_tokens=3, n=2, best_of=3,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    assert len(reply.choices) == 4
    first, second, third, fourth = [choice.logprobs.token_logprobs or [] for choice in reply.choices if choice.logprobs]
    prompts = len(first) - 3, len(third) - 3
    assert first[: prompts[0]] == second[: prompts[0]]
    assert third[: prompts[1]] == fourth[: prompts[1]]
