"""A request to a model that yields scores of classes ends with them, in steps with those that generate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blockc_runtime.request import TokensEvent
from blockc_runtime.step import RowResult

from .harness import Run, alone, limits, request

SCORING = 1


def _step(run: Run):
    """One step in which rows of one chain yield scores where others draw."""
    step = run.scheduler.schedule(run.now_s)
    run.executor.submit(step)
    result = run.executor.collect()
    rows = tuple(
        RowResult(tokens=(), logprobs=(), scores=(0.5, -2.0)) if row.chain == SCORING and row.samples else outcome
        for row, outcome in zip(step.rows, result.rows, strict=True)
    )
    run.take(run.scheduler.complete(step, replace(result, rows=rows), run.now_s))
    run.kv.check_integrity()
    return step


def test_scores_end_a_request_without_a_token_and_others_go_on():
    run = Run(limits(max_batched_tokens=8))
    own = request("text", [1, 2, 3], app=1)
    run.admit(own)
    run.admit(request("long", range(10, 20), chain=SCORING, max_tokens=1))
    while run.scheduler.has_work:
        _step(run)
    end = run.ends["long"]
    assert (end.reason, end.scores, run.tokens["long"]) == ("stop", (0.5, -2.0), [])
    assert run.tokens["text"] == alone(own)
    assert run.ends["text"].scores == ()
    assert not any(isinstance(event, TokensEvent) and event.request == "long" for event in run.log)
    assert run.held_pages() == 0


def test_the_pages_of_a_text_are_found_by_the_next_one_of_its_chain():
    run = Run(limits())
    for name, cached in (("first", 0), ("second", 8)):
        run.admit(request(name, range(1, 11), chain=SCORING, max_tokens=1))
        _step(run)
        assert run.ends[name].cached_tokens == cached


def _each_step(run: Run) -> None:
    """One step in which each token of rows that want it is scored: by itself, and by what it is not."""
    step = run.scheduler.schedule(run.now_s)
    run.executor.submit(step)
    result = run.executor.collect()
    rows = tuple(
        RowResult(tokens=(), logprobs=(), scores=tuple(float(n) for token in row.tokens for n in (token, -token)))
        if row.each
        else RowResult(tokens=(), logprobs=())
        if row.chain == SCORING
        else outcome
        for row, outcome in zip(step.rows, result.rows, strict=True)
    )
    run.take(run.scheduler.complete(step, replace(result, rows=rows), run.now_s))
    run.kv.check_integrity()


@pytest.mark.parametrize("parts", [1, 2])
def test_each_token_of_a_long_text_has_its_scores_whatever_happens_on_the_way(parts: int):
    own = limits(max_batched_tokens=16, parts=parts)
    chains = [
        replace(chain, draws=False, token_classes=2) if index == SCORING else chain
        for index, chain in enumerate(own.chains)
    ]
    run = Run(replace(own, chains=tuple(chains)))
    text = list(range(10, 60))
    expected = tuple(float(n) for token in text for n in (token, -token))
    for name in ("first", "again"):  # the same text, of the same tenant: nothing of it is found
        run.admit(request(name, text, chain=SCORING, max_tokens=1))
        run.admit(request(f"beside {name}", [1, 2, 3], max_tokens=4))
        for _ in range(2 * parts):
            _each_step(run)
        run.scheduler.give_way()
        while run.scheduler.has_work:
            _each_step(run)
        end = run.ends[name]
        assert (end.reason, end.cached_tokens, run.tokens[name]) == ("stop", 0, [])
        assert end.scores == expected
    assert run.held_pages() == 0
