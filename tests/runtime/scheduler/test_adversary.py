"""The invariants of scheduler, KV index and null executor under a seeded adversary (see `adversary.py`)."""

from __future__ import annotations

import pytest

from tests.conftest import Promised

from .adversary import Adversary
from .harness import PAGE, Run, limits, request

SEEDS = 200


@pytest.mark.promise("scheduler")
@pytest.mark.parametrize("block", range(10))
def test_invariants_hold_for_every_seed(block, promised: Promised):
    seeds = range(block, SEEDS, 10)
    for seed in seeds:
        try:
            Adversary(seed).play()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    promise = "200 seeds of kill, stall, drop, reorder, OOM: the invariants hold"
    promised("seeds of the adversary", promise, f"{len(seeds)} seeds", kept=True)


def test_without_faults_every_request_that_fits_succeeds():
    for seed in range(1000, 1030):
        run = Adversary(seed, is_kind=True).play()
        assert all(end.reason in ("stop", "length") or "KV pages" in end.message for end in run.ends.values()), seed


@pytest.mark.promise("scheduler")
def test_the_same_seed_gives_the_same_log(promised: Promised):
    for seed in range(10):
        assert Adversary(seed).play().log == Adversary(seed).play().log
    promised("the same seed", "gives the same event log", "10 of 10 seeds, twice each", kept=True)


def test_the_adversary_reaches_what_it_is_meant_to_reach():
    worlds = [Adversary(seed) for seed in range(60)]
    runs = [world.play() for world in worlds]
    assert sum(world.parted for world in worlds) > 200
    assert sum(world.turns for world in worlds) > 200
    assert sum(run.scheduler.gauges().counts.block_evictions for run in runs) > 50
    assert sum(run.scheduler.gauges().counts.preemptions for run in runs) > 20
    ends = [end for run in runs for end in run.ends.values()]
    assert {end.reason for end in ends} == {"stop", "length", "cancelled", "error"}
    assert sum(end.cached_tokens > 0 for end in ends) > 20


class Cracked(Adversary):
    """A world with one defect; the checks must see it."""

    def __init__(self, seed, break_):
        super().__init__(seed, is_kind=True)
        break_(self.run)


def _same_domain_for_all(run):
    find = run.kv._found
    run.kv._found = lambda index, domain, prefix, reused: find(index, "low" if index == 0 else domain, prefix, reused)
    reusable = run.kv._hit_below
    run.kv._hit_below = lambda index, domain, prefix, length: reusable(
        index, "low" if index == 0 else domain, prefix, length
    )


def _no_isolation(run):
    import blockc_runtime.scheduler.admission as module

    original = module.Prefix
    admit = run.scheduler.admit

    def admit_in_one_group(own, now_s=0.0):
        module.Prefix = lambda _, tokens: original("all", tokens)
        try:
            return admit(own, now_s)
        finally:
            module.Prefix = original

    run.scheduler.admit = admit_in_one_group


def _publishes_too_much(run):
    commit = run.kv.commit

    def commit_more(name, tokens):
        holder = run.kv._holders[name]
        entries = min(len(table.entries) * table.group.page_tokens for table in holder.tables)
        commit(name, min(entries, len(holder.prefix.tokens)))

    run.kv.commit = commit_more


def _frees_in_flight(run):
    cancel = run.scheduler.cancel

    def cancel_at_once(name, now_s=0.0):
        item = run.scheduler._live.get(name)
        events = cancel(name, now_s)
        if item is not None and item.step is not None and events:
            run.kv.release(name)
            run.kv._holders[name] = _Nothing()
        return events

    run.scheduler.cancel = cancel_at_once


class _Nothing:
    tables = ()


def _is_noticed(world: Cracked) -> bool:
    try:
        world.play()
    except (AssertionError, ValueError):
        return True
    return False


@pytest.mark.parametrize("break_", [_same_domain_for_all, _no_isolation, _publishes_too_much])
def test_a_broken_index_is_noticed(break_):
    assert any(map(_is_noticed, (Cracked(seed, break_) for seed in range(40))))


def test_pages_freed_under_a_step_in_flight_are_noticed():
    worlds = [Cracked(seed, _frees_in_flight) for seed in range(60)]
    for world in worlds:
        world.cancel_rate = 0.5
    assert any(map(_is_noticed, worlds))


def test_cancelled_in_flight_pages_are_kept_until_the_step_is_done():
    run = Run(limits(pages=(16, 16)))
    run.admit(request("r", range(30), max_tokens=4))
    step = run.scheduler.schedule(0.0)
    before = run.kv.free_pages()
    run.take(run.scheduler.cancel("r"))
    assert run.kv.free_pages() == before, "the step in flight may still write there"
    assert run.scheduler.running == 0
    run.executor.submit(step)
    run.take(run.scheduler.complete(step, run.executor.collect(), 1.0))
    assert run.kv.free_pages() == run.kv.total_pages()
    assert run.ends["r"].reason == "cancelled"
    assert run.kv.usage()[0].idle == 0, "nothing of it was committed"
    assert PAGE * run.kv.total_pages()[0] >= 30
