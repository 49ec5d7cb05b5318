"""Rows of requests whose prompts are scored: every prompt token but the first is asked for, whatever the chunks."""

from __future__ import annotations

import dataclasses

import pytest

from blockc_runtime.request import Request, TokensEvent

from .harness import Run, limits, request

PROMPT = list(range(1, 21))


def scored(name: str, prompt: list[int], *, chain: int = 0, max_tokens: int = 3, emitted: int = 0) -> Request:
    own = request(name, prompt, chain=chain, max_tokens=max_tokens, emitted=emitted, group=f"g/{name}")
    return dataclasses.replace(own, prompt_logprobs=2)


def places(run: Run, name: str) -> list[int]:
    """The places in the prompt that were told of, in order."""
    return [
        event.prompt_start + index
        for event in run.log
        if isinstance(event, TokensEvent) and event.request == name
        for index in range(len(event.prompt_logprobs))
    ]


@pytest.mark.parametrize("chain", [0, 5])  # without and with virtual tokens
@pytest.mark.parametrize("budget", [3, 7, 32])
@pytest.mark.parametrize("rows", [2, 8])
def test_each_token_once(chain: int, budget: int, rows: int):
    run = Run(limits(max_batched_tokens=budget, max_rows=rows))
    run.admit(scored("s", PROMPT, chain=chain))
    run.admit(request("plain", PROMPT, chain=chain))
    asked: list[int] = []
    while run.scheduler.has_work:
        step = run.step()
        assert step is not None
        assert sum(row.logits for row in step.rows) <= rows  # what the workspace is planned for
        for row in step.rows:
            assert row.logits <= len(row.tokens)
            asked += row.given if row.request == "s" else ()
            assert row.request == "s" or row.given == ()
    assert asked == PROMPT[1:]
    assert places(run, "s") == list(range(1, 20))
    assert len(run.tokens["s"]) == 3


def test_a_prompt_of_one_token_has_nothing_to_tell():
    run = Run(limits())
    run.admit(scored("s", [7]))
    run.drain()
    assert places(run, "s") == []
    assert len(run.tokens["s"]) == 3


def test_after_outputs_nothing_is_told_again():
    run = Run(limits())
    run.admit(scored("s", [*PROMPT, 30, 31], emitted=2))  # of an earlier engine
    run.drain()
    assert places(run, "s") == []


def test_preempted_or_not_all_places_are_told():
    run = Run(limits(pages=(8, 8), max_batched_tokens=8))
    names = ["a", "b", "c"]
    for name in names:
        run.admit(scored(name, PROMPT[:12], max_tokens=12))
    run.drain()
    assert run.scheduler.gauges().counts.preemptions > 0
    for name in names:
        assert set(places(run, name)) == set(range(1, 12))
