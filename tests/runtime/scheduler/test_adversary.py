"""Random arrivals, cancellations, faults and tiny pools, by seed: the invariants of the scheduler hold throughout."""

from __future__ import annotations

import random

import pytest

from .harness import Run, alone, limits, request


def _play(seed: int) -> Run:
    rng = random.Random(seed)
    run = Run(
        limits(
            pages=rng.choice([(16, 16), (17, 40), (40, 40)]),
            max_rows=rng.choice([1, 3, 8]),
            max_batched_tokens=rng.choice([3, 16, 64]),
            windows=rng.choice([(None, None), (6, None)]),
        )
    )
    stems = [[rng.randrange(100) for _ in range(rng.randint(1, 20))] for _ in range(3)]
    requests = []
    for number in range(rng.randint(5, 25)):
        prompt = [*rng.choice(stems), *(rng.randrange(100) for _ in range(rng.randint(0, 12)))]
        requests.append(
            request(
                f"r{number}", prompt, chain=rng.randrange(4), app=rng.randrange(6),
                max_tokens=rng.randint(1, 30), group=rng.choice(["a", "b"]),
            )
        )  # fmt: skip
    waiting = list(requests)
    rate = rng.choice([0.0, 0.0, 0.15])
    for _ in range(rng.randint(10, 60)):
        if waiting and rng.random() < 0.5:
            run.admit(waiting.pop(0))
        if rng.random() < 0.1 and run.tokens:
            run.take(run.scheduler.cancel(rng.choice(list(run.tokens))))
        run.step(rng, rate)
    for own in waiting:
        run.admit(own)
    run.drain()
    for own in requests:
        _judge(run, own)
    assert run.kv.free_pages() == run.kv.total_pages(), "pages are lost after the last request"
    return run


def _judge(run: Run, own) -> None:
    end = run.ends[own.id]
    expected = alone(own)
    got = run.tokens[own.id]
    if end.reason in ("length", "stop"):
        assert got == expected
    else:
        assert got == expected[: len(got)], "tokens of an unfinished request are a beginning of its answer"
    if end.reason == "error":
        assert "injected" in end.message


@pytest.mark.parametrize("block", range(10))
def test_invariants_hold_for_every_seed(block):
    for seed in range(block * 25, block * 25 + 25):
        _play(seed)


def test_the_same_seed_gives_the_same_log():
    for seed in range(20):
        assert _play(seed).log == _play(seed).log


def test_cancelled_in_flight_pages_are_kept_until_the_step_is_done():
    run = Run(limits(pages=(16, 16)))
    run.admit(request("r", range(30), max_tokens=4))
    step = run.scheduler.schedule(0.0)
    before = run.kv.free_pages()
    run.take(run.scheduler.cancel("r"))
    assert run.kv.free_pages() == before, "the step in flight may still write there"
    run.executor.submit(step)
    run.take(run.scheduler.complete(step, run.executor.collect(), 1.0))
    assert run.kv.free_pages() == run.kv.total_pages()
    assert run.ends["r"].reason == "cancelled"
