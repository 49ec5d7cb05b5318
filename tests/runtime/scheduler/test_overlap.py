"""Steps that are issued while the one before runs: what is counted on, and what of it counts."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from blockc_runtime.request import EndEvent, Sampling, Steering
from blockc_runtime.step import Fault, Feed, RowResult, StepResult

from .adversary import Adversary
from .harness import PAGE, Run, alone, limits, request

SEEDS = 60


def _overlapping(**options):
    return Run(limits(overlaps=True, **options))


def _stopping(prompt, place, **options):
    """A request whose answer stops at the output of that index."""
    whole = alone(request("r", prompt, **options))
    return request("r", prompt, stop=[whole[place]], **options)


def test_a_row_follows_one_in_flight_and_is_fed_by_it():
    run = _overlapping()
    run.admit(request("r", [1, 2, 3], max_tokens=3))
    first, _ = run.turn()
    second, done = run.turn()
    assert done is first
    (row,) = second.rows
    assert (row.tokens, row.start, row.output_index) == ((0,), 3, 1)
    assert row.fed == Feed(step=first.id, row=0)
    assert run.tokens["r"] == alone(request("r", [1, 2, 3], max_tokens=3))[:1]
    run.drain()
    assert run.tokens["r"] == alone(request("r", [1, 2, 3], max_tokens=3))


def test_chunks_of_a_prompt_follow_each_other_without_a_gap():
    run = _overlapping(max_batched_tokens=8)
    run.admit(request("r", range(20), max_tokens=2))
    issued = [run.turn()[0] for _ in range(4)]
    assert [[(row.start, len(row.tokens), row.samples) for row in step.rows] for step in issued] == [
        [(0, 8, 0)], [(8, 8, 0)], [(16, 4, 1)], [(20, 1, 1)],
    ]  # fmt: skip


def test_an_end_that_is_known_costs_no_row_and_no_time():
    """By length: the request that waits has its first row beside the last one's last, or right behind it."""
    run = _overlapping(max_rows=1)
    run.admit(request("first", [1, 2], max_tokens=3))
    run.admit(request("second", [3, 4], max_tokens=1))
    issued = []
    while run.scheduler.has_work:
        issued.append(run.turn()[0])
    assert [[row.request for row in step.rows] for step in issued if step] == [["first"]] * 3 + [["second"]]
    assert issued.index(None) == 4
    assert run.scheduler.gauges().counts.overlapped == 3


def test_what_is_drawn_behind_a_stop_token_is_nobodys():
    plain, run = Run(limits()), _overlapping()
    own = _stopping([5, 6, 7], 4, max_tokens=20)
    for each in (plain, run):
        each.admit(own)
        each.drain()
    assert run.tokens == plain.tokens == {"r": alone(own)}
    assert run.ends == plain.ends
    assert run.log == plain.log
    assert run.scheduler.service == plain.scheduler.service
    assert run.scheduler.gauges().steps == plain.scheduler.gauges().steps + 1
    assert run.held_pages() == 0
    assert [usage.idle for usage in run.kv.usage()] == [usage.idle for usage in plain.kv.usage()]


def test_pages_of_a_request_that_stopped_are_its_own_until_the_row_behind_is_done():
    run = _overlapping(pages=(16, 16))
    run.admit(_stopping(range(2 * PAGE - 1), 1, max_tokens=9))
    for _ in range(3):
        last, _ = run.turn()
    assert run.ends["r"].reason == "stop"
    assert last is not None
    held = run.held_pages()
    assert held > 0
    assert run.scheduler.schedule(0.0) is None
    run.turn()
    assert run.held_pages() == 0


def _world(seed):
    """Limits, and requests with the tick at which they come; about half of them end by a stop token."""
    rng = random.Random(seed)
    own = {
        "pages": rng.choice([(16, 16), (17, 40), (60, 60), (40, 5)]),
        "max_rows": rng.choice([1, 3, 8]),
        "max_batched_tokens": rng.choice([8, 16, 64]),
        "windows": rng.choice([(None, None), (6, None), (9, 13), (None, 9)]),
        "parts": rng.choice([1, 1, 4]),
    }
    arrivals = []
    for number in range(rng.randint(2, 12)):
        sampling = Sampling(temperature=rng.choice([0.0, 1.0]), seed=number)
        prompt = [rng.randrange(50) for _ in range(rng.randint(1, 30))]
        options = {
            "chain": rng.randrange(6), "app": rng.randrange(6), "max_tokens": rng.randint(1, 25), "sampling": sampling,
        }  # fmt: skip
        made = request(f"r{number}", prompt, **options)
        if rng.random() < 0.5:
            made = request(made.id, prompt, stop=[rng.choice(alone(made))], **options)
        arrivals.append((rng.randrange(30), made))
    return own, arrivals


def _served(own, arrivals, overlaps):
    run = Run(limits(overlaps=overlaps, **own))
    for tick in range(30):
        for at, made in arrivals:
            if at == tick:
                run.admit(made)
        if overlaps:
            run.turn()
        else:
            run.step()
    run.drain()
    events = {name: [] for name in run.tokens}
    for event in run.log:
        # What is found in the cache depends on when one asks.
        events[event.request].append(replace(event, cached_tokens=0) if isinstance(event, EndEvent) else event)
    return events


@pytest.mark.parametrize("block", range(6))
def test_each_request_has_the_events_that_it_has_without(block):
    for seed in range(block, SEEDS, 6):
        own, arrivals = _world(seed)
        assert _served(own, arrivals, True) == _served(own, arrivals, False), seed


def test_nothing_is_taken_from_who_is_in_flight():
    """Two contexts that do not fit together: the step waits for the one in flight, and then chooses as ever."""

    def preempted(overlaps):
        run = Run(limits(pages=(8, 8), weights=(1.0, 1.0), overlaps=overlaps))
        run.admit(request("keeps", [1, 2, 3], app=0, max_tokens=20))
        run.admit(request("gives", range(9), app=1, max_tokens=20))
        run.drain()
        return run

    plain, run = preempted(False), preempted(True)
    assert run.tokens == plain.tokens
    assert run.scheduler.gauges().counts.waits["pages"] > 0
    assert run.scheduler.gauges().counts.preemptions == plain.scheduler.gauges().counts.preemptions > 0


def test_places_are_given_up_though_everybody_is_always_in_flight():
    run = _overlapping(max_rows=2, weights=(1.0, 1.0))
    for name in ("a", "b"):
        run.admit(request(name, [1, 2], app=0, max_tokens=60))
    for _ in range(5):
        run.turn()
    run.admit(request("late", [3], app=1, max_tokens=2))
    for _ in range(6):
        run.turn()
    assert run.ends["late"].reason == "length"
    assert run.scheduler.gauges().counts.waits == {"places": 1}
    run.drain()


def test_a_lost_worker_takes_the_step_behind_with_it():
    run = _overlapping()
    run.admit(request("r", range(9)))
    run.turn()
    run.turn()
    (lost,) = run.in_flight
    behind = run.scheduler.schedule(0.0)
    assert behind.rows[0].fed == Feed(step=lost.id, row=0)
    fault = RowResult(tokens=(), logprobs=(), fault=Fault(scope="worker", message="gone"))
    assert run.scheduler.complete(lost, StepResult(step=lost.id, rows=(fault,)), 0.0) == ()
    assert run.scheduler.schedule(0.0) is None, "it goes on from what is gone"
    run.scheduler.complete(behind, StepResult(step=behind.id, rows=(fault,)), 0.0)
    run.executor.close()
    run.in_flight.clear()
    run.drain()
    assert run.tokens["r"] == alone(request("r", range(9)))


def test_a_fault_ends_a_request_under_the_row_behind_it():
    run = _overlapping()
    for name in ("good", "bad"):
        run.admit(request(name, [ord(name[0]), 2]))
    first, _ = run.turn()
    behind = run.scheduler.schedule(0.0)
    run.executor.submit(behind)
    good, bad = run.executor.collect().rows
    spoiled = RowResult(tokens=(), logprobs=(), fault=Fault(scope="row", message="bad"))
    run.take(run.scheduler.complete(first, StepResult(step=first.id, rows=(good, spoiled)), 0.0))
    run.in_flight[:] = [behind]
    run.drain()
    assert run.ends["bad"].message == "bad"
    assert run.tokens["bad"] == []
    assert run.tokens["good"] == alone(request("good", [ord("g"), 2]))
    assert run.held_pages() == 0
    del bad


def test_cancelled_with_two_rows_in_flight():
    run = _overlapping()
    run.admit(request("r", range(9)))
    run.turn()
    run.turn()
    run.scheduler.schedule(0.0)
    run.take(run.scheduler.cancel("r"))
    before = run.held_pages()
    assert before > 0
    (first,) = run.in_flight
    run.take(run.scheduler.complete(first, run.executor.collect(), 0.0))
    assert run.held_pages() == before
    assert len(run.tokens["r"]) == 1


def test_histories_are_those_of_the_rows_that_feed():
    run = _overlapping()
    steered = Sampling(steering=Steering(repetition_penalty=1.5))
    run.admit(request("r", [1, 2, 3], sampling=steered))
    first, _ = run.turn()
    behind = run.scheduler.schedule(0.0)
    assert first.rows[0].history == (1, 2, 3)
    assert behind.rows[0].history == ()
    assert behind.rows[0].filled(first.rows[0], 7).history == (1, 2, 3, 7)


class _Crossed(Adversary):
    """A world in which rows are fed by their neighbours."""

    def __init__(self, seed):
        super().__init__(seed, is_kind=True)
        issue = self.run.scheduler._count_on

        def crossed(item, row, index):
            issue(item, row, index)
            if item.feed is not None and item.feed.row > 0:
                item.feed = Feed(step=item.feed.step, row=item.feed.row - 1)

        self.run.scheduler._count_on = crossed

    def _look_at_follower(self, row, number, index, before):
        """What is drawn has to tell."""


def test_tokens_of_neighbours_are_noticed():
    noticed = 0
    for seed in range(30):
        try:
            _Crossed(seed).play()
        except AssertionError:
            noticed += 1
    assert noticed > 5


def test_the_adversary_reaches_rows_that_follow_rows_in_flight():
    worlds = [Adversary(seed) for seed in range(40)]
    for world in worlds:
        world.play()
    assert sum(world.fed for world in worlds) > 500
    assert sum(sum(world.run.scheduler.gauges().counts.waits.values()) for world in worlds) > 5
