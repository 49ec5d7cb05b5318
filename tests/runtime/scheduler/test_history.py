"""Rows whose draw depends on the tokens so far carry them, whatever happened to the request; others carry nothing."""

from __future__ import annotations

import pytest

from blockc_runtime.request import Sampling, Steering

from .harness import Run, limits, request

STEERED = Sampling(steering=Steering(presence_penalty=1.0))


@pytest.mark.parametrize("chain", [0, 5])  # without and with virtual tokens
@pytest.mark.parametrize("emitted", [0, 3])  # of an earlier engine
def test_the_tokens_so_far(chain: int, emitted: int):
    run = Run(limits(max_batched_tokens=4))
    prompt = [1, 2, 3, 4, 5, 6]
    run.admit(request("steered", prompt, chain=chain, emitted=emitted, max_tokens=8, sampling=STEERED))
    run.admit(request("plain", prompt, chain=chain, max_tokens=8))
    drawn: list[int] = []
    while run.scheduler.has_work:
        for row in run.step().rows:
            if row.request == "plain" or not row.samples:
                assert row.history == ()
            else:
                drawn = run.tokens["steered"][: row.output_index - emitted]
                assert list(row.history) == prompt + drawn
                assert row.output_index == emitted + len(drawn)
    assert len(drawn) == 7 - emitted


def test_after_a_preemption():
    run = Run(limits(pages=(5, 5)))
    own = [request(name, [1, 2, 3], max_tokens=10, sampling=STEERED) for name in ("a", "b", "c")]
    for each in own:
        run.admit(each)
    while run.scheduler.has_work:
        for row in run.step().rows:
            if row.samples:
                assert list(row.history) == [1, 2, 3, *run.tokens[row.request][: row.output_index]]
                assert len(row.history) == 3 + row.output_index
    assert run.scheduler.gauges().counts.preemptions > 0
