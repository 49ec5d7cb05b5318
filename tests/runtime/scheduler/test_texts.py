"""Texts that have to stand in one step as a whole: beside prompts and answers, in turn, and nobody stopped."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from .harness import MAX_MODEL_LEN, Run, alone, limits, request

TEXTS, SCORES = 4, 5  # chains: an encoder, a classifier that reads from left to right
BUDGET = 32


def world(**changes):
    own = limits(max_batched_tokens=BUDGET, **changes)
    encoder = replace(own.chains[0], groups=(), domains=(), draws=False, whole=True)
    classifier = replace(own.chains[0], draws=False)
    return replace(own, chains=(*own.chains[:4], encoder, classifier))


def text(name, count, *, app=0, **more):
    return request(name, range(1, count + 1), chain=TEXTS, app=app, max_tokens=1, **more)


def steps(run, most=200):
    """Run to the end; the rows of each step by request."""
    seen = []
    while run.scheduler.has_work:
        assert len(seen) < most, "it does not end"
        step = run.step()
        seen.append({row.request: len(row.tokens) for row in step.rows} if step else {})
    return seen


def test_a_text_is_one_row_of_one_step_and_takes_no_pages():
    run = Run(world())
    for name, count in {"a": 20, "b": 11, "c": 5, "d": 1}.items():
        run.admit(text(name, count))
    assert [sorted(step.items()) for step in steps(run)] == [[("a", 20), ("b", 11)], [("c", 5), ("d", 1)]]
    for name in "abcd":
        assert (run.ends[name].reason, sum(run.ends[name].scores), run.tokens[name]) == ("stop", 1.0, [])
    assert run.held_pages() == 0


def test_texts_prompts_and_answers_share_steps_and_all_end_as_they_would_alone():
    rng = random.Random(3)
    run = Run(world(weights=(1.0, 2.0)))
    wanted = {}
    for number in range(60):
        app, count = rng.randrange(2), rng.randrange(1, BUDGET + 1)
        if number % 3 == 0:
            wanted[f"p{number}"] = request(f"p{number}", range(count), chain=rng.randrange(4), app=app, max_tokens=6)
            run.admit(wanted[f"p{number}"])
        elif number % 3 == 1:
            run.admit(text(f"t{number}", count, app=app))
        else:
            run.admit(request(f"s{number}", range(count), chain=SCORES, app=app, max_tokens=1))
    for step in steps(run, most=600):
        assert sum(step.values()) <= BUDGET
    assert {end.reason for end in run.ends.values()} <= {"stop", "length"}
    for name, own in wanted.items():
        assert run.tokens[name] == alone(own)
    assert all(sum(run.ends[name].scores) == 1.0 for name in run.ends if name[0] in "ts")
    assert run.held_pages() == 0


def test_a_text_as_long_as_a_step_gets_one_while_others_decode_and_they_get_theirs():
    run = Run(world(max_rows=8))
    for number in range(4):
        run.admit(request(f"talk{number}", [number], app=number, max_tokens=60))
    for number in range(10):
        run.admit(text(f"text{number}", BUDGET, app=4))
    seen = steps(run)
    first, last = (next(i for i, step in enumerate(seen) if f"text{n}" in step) for n in (0, 9))
    assert first <= 3
    assert last - first <= 2 * 10, "a text waits one step at most"
    talking = [sum(name.startswith("talk") for name in step) for step in seen[first:last]]
    assert sum(talking) >= 4 * (len(talking) // 2), "whoever decodes waits one step at most"
    assert max(len(run.tokens[f"talk{n}"]) for n in range(4)) == 60


def test_nobody_starts_after_a_text_that_does_not_fit_and_prompts_that_run_go_on():
    run = Run(world())
    run.admit(request("long", range(60), max_tokens=2))
    run.step()
    run.admit(text("text", BUDGET - 4))
    run.admit(text("short", 3))
    assert steps(run)[:2] == [{"long": 28}, {"text": 28, "long": 1, "short": 3}]


@pytest.mark.parametrize(("count", "says"), [(BUDGET + 1, f"a step of {BUDGET}"), (MAX_MODEL_LEN + 1, "fit")])
def test_what_cannot_be_read_is_refused_with_the_numbers(count, says):
    run = Run(world())
    run.admit(text("text", count))
    assert run.ends["text"].reason == "error"
    assert says in run.ends["text"].message
    assert str(count) in run.ends["text"].message


def test_a_text_may_be_as_long_as_the_model_reads_for_nothing_follows_it():
    run = Run(world())
    run.admit(request("full", [1] * MAX_MODEL_LEN, chain=SCORES, max_tokens=1))
    run.admit(request("more", [1] * (MAX_MODEL_LEN + 1), chain=SCORES, max_tokens=1))
    steps(run)
    assert run.ends["full"].reason == "stop"
    assert f"{MAX_MODEL_LEN} fit" in run.ends["more"].message
