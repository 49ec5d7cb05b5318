"""Virtual tokens stand before every prompt of their chain, take room and pages, and nobody sees them."""

from __future__ import annotations

import pytest

from blockc_runtime.request import Sampling

from .harness import MAX_MODEL_LEN, PAGE, VIRTUAL, Run, alone, limits, request

PREFIXED = 5
ROOM = MAX_MODEL_LEN - len(VIRTUAL)


def test_they_are_the_first_tokens_of_the_first_row():
    run = Run(limits())
    run.admit(request("r", [1, 2, 3], chain=PREFIXED))
    (row,) = run.step().rows
    assert (row.start, row.tokens, row.output_index) == (0, (*VIRTUAL, 1, 2, 3), 0)
    run.drain()
    assert run.tokens["r"] == alone(request("r", [1, 2, 3], chain=PREFIXED))


def test_a_long_prefill_is_cut_among_them():
    run = Run(limits(max_batched_tokens=4))
    own = request("r", [1, 2, 3], chain=PREFIXED)
    run.admit(own)
    rows = [run.step().rows[0] for _ in range(3)]
    assert [row.tokens for row in rows] == [VIRTUAL[:4], (*VIRTUAL[4:], 1, 2), (3,)]
    assert [row.samples for row in rows] == [0, 0, 1]
    run.drain()
    assert run.tokens["r"] == alone(own)


@pytest.mark.parametrize("length", [ROOM - 1, ROOM, 0])
def test_they_take_room(length):
    run = Run(limits())
    run.admit(request("r", range(length), chain=PREFIXED, max_tokens=100))
    run.drain()
    end = run.ends["r"]
    if length == ROOM - 1:
        assert (end.reason, len(run.tokens["r"])) == ("length", 1)
    elif length:
        assert end.message == f"the prompt has {ROOM} tokens; with room for an answer {ROOM - 1} fit"
    else:
        assert end.message == "the prompt is empty"


def test_the_cache_shares_their_pages_inside_a_group_and_usage_does_not_count_them():
    run = Run(limits())
    for name, prompt, group, cached, held in [
        ("first", [1, 2], "a", 0, 0),
        ("another prompt", [3, 4], "a", 0, PAGE),  # a page of virtual tokens, and not one of its own tokens
        ("same prompt", [1, 2, 3, 4, 5], "a", 2, 2 * PAGE),  # its page has two virtual tokens and two of the prompt
        ("other group", [1, 2], "b", 0, 0),
    ]:
        own = request(name, prompt, chain=PREFIXED, group=group, max_tokens=4)
        run.admit(own)
        (row,) = run.step().rows
        assert row.start == held, name
        run.drain()
        assert run.ends[name].cached_tokens == cached, name
        assert run.tokens[name] == alone(own)


def test_neither_another_chain_nor_a_prompt_that_says_the_same_shares_them():
    run = Run(limits())
    run.admit(request("r", [1, 2, 3], chain=PREFIXED))
    run.drain()
    run.admit(request("spelt out", [*VIRTUAL, 1, 2, 3], chain=0))
    assert run.step().rows[0].start == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_restart_goes_on_where_it_was(temperature):
    sampling = Sampling(temperature=temperature, seed=3)
    whole = alone(request("r", [1, 2, 3], chain=PREFIXED, sampling=sampling))
    again = request("r", [1, 2, 3, *whole[:5]], chain=PREFIXED, emitted=5, sampling=sampling)
    run = Run(limits())
    run.admit(again)
    assert run.step().rows[0].output_index == 5
    run.drain()
    assert run.tokens["r"] == whole[5:]


def test_a_pool_without_room_for_them_refuses():
    run = Run(limits(pages=(4, 4)))
    run.admit(request("fits", [1] * 10, chain=0, max_tokens=4))
    run.admit(request("does not", [1] * 10, chain=PREFIXED, max_tokens=4))
    run.drain()
    assert run.ends["fits"].reason == "length"
    assert "KV pages" in run.ends["does not"].message


def test_whoever_uses_them_pays_for_them():
    run = Run(limits(weights=(1.0, 1.0)))
    run.admit(request("plain", [1, 2, 3], chain=0, app=0, max_tokens=1))
    run.admit(request("prefixed", [1, 2, 3], chain=PREFIXED, app=1, max_tokens=1))
    run.drain()
    assert run.scheduler.service[1] - run.scheduler.service[0] == len(VIRTUAL)
