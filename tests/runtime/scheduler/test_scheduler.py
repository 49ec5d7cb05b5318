"""What the scheduler decides: budgets, launches, refusals, fairness, resuming."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .harness import PAGE, Run, alone, limits, request


def test_decode_comes_first_and_prefill_takes_what_is_left():
    run = Run(limits(max_batched_tokens=8))
    run.admit(request("short", [1, 2], max_tokens=20))
    run.step()
    run.admit(request("long", range(20), max_tokens=2))
    for chunk in (7, 7, 6):
        step = run.step()
        assert sorted(len(row.tokens) for row in step.rows) == [1, chunk]
        assert sum(len(row.tokens) for row in step.rows) <= 8
    assert [row.samples for row in step.rows] == [1, 1]


def test_launches_do_not_depend_on_how_many_chains_share_their_segments():
    def launches(chains):
        run = Run(limits())
        for number, chain in enumerate(chains):
            run.admit(request(f"r{number}", [1, 2, number], chain=chain))
        return run.step().launches

    assert len(launches([0])) == len(launches([0, 1, 2, 0, 1])) == 3
    assert [launch.segment for launch in launches([0, 3])] == [0, 1, 2, 3]
    assert [launch.rows for launch in launches([0, 3])] == [(0, 1), (0,), (1,), (0, 1)]


def test_rows_of_a_chain_stand_together():
    run = Run(limits())
    for number, chain in enumerate([2, 0, 2, 1, 0]):
        run.admit(request(f"r{number}", [number, 1], chain=chain))
    assert [row.chain for row in run.step().rows] == [0, 0, 1, 2, 2]


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (request("r", []), "empty"),
        (request("r", range(64)), "63 fit"),
        (request("r", range(40), max_tokens=30), "KV pages"),
    ],
)
def test_what_can_never_run_is_refused(own, words):
    run = Run(limits(pages=(12, 40)))
    run.admit(own)
    assert run.ends["r"].reason == "error"
    assert words in run.ends["r"].message
    assert not run.scheduler.has_work


def test_a_full_queue_refuses():
    from blockc_runtime.kv.index import KvIndex
    from blockc_runtime.scheduler import Scheduler

    own = limits()
    scheduler = Scheduler(own, KvIndex(own), max_waiting=2)
    assert [len(scheduler.admit(request(f"r{number}", [1]))) for number in range(3)] == [0, 0, 1]


def test_the_context_ends_an_answer():
    run = Run(limits())
    run.admit(request("r", range(60), max_tokens=1000))
    run.drain()
    assert run.ends["r"].reason == "length"
    assert len(run.tokens["r"]) == 4


def test_a_stop_token_is_the_last_one():
    own = request("r", [5, 6], max_tokens=10)
    third = alone(own)[2]
    run = Run(limits())
    run.admit(request("r", [5, 6], max_tokens=10, stop=[third]))
    run.drain()
    assert run.tokens["r"] == alone(own)[:3]
    assert run.ends["r"].reason == "stop"


def test_a_restarted_engine_goes_on_where_it_was():
    own = request("r", [5, 6, 7], max_tokens=10)
    whole = alone(own)
    run = Run(limits())
    run.admit(request("r", [5, 6, 7, *whole[:4]], max_tokens=10, emitted=4))
    step = run.step()
    assert step.rows[0].output_index == 4
    run.drain()
    assert run.tokens["r"] == whole[4:]


def test_reuse_within_a_group_always_and_across_groups_or_domains_never():
    prompt = list(range(PAGE * 4 + 1))
    run = Run(limits())
    for name, chain, group, cached in [
        ("first", 0, "a", 0),
        ("same chain", 0, "a", PAGE * 4),
        ("equal domains", 1, "a", PAGE * 4),
        ("upper layers differ", 2, "a", 0),
        ("all layers differ", 3, "a", 0),
        ("another tenant", 0, "b", 0),
        ("another tenant again", 0, "b", PAGE * 4),
    ]:
        run.admit(request(name, prompt, chain=chain, group=group, max_tokens=2))
        run.drain()
        assert run.ends[name].cached_tokens == cached, name
        # Chains of equal domains are told apart by the null model, which keys its tokens by chain.
        assert run.tokens[name] == alone(request(name, prompt, chain=chain, max_tokens=2))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 2.0, 4.0)])
def test_backlogged_tenants_are_served_by_weight(weights):
    run = Run(limits(pages=(200, 200), weights=weights, max_rows=4, max_batched_tokens=16))
    served = dict.fromkeys(range(len(weights)), 0.0)
    for number in range(len(weights) * 300):
        run.admit(request(f"r{number}", [number % 97, number % 89, number], app=number % len(weights), max_tokens=5))
    while all(any(item.tenant == tenant for item in run.scheduler._live.values()) for tenant in served):
        for row in run.step().rows:
            tenant = int(row.request[1:]) % len(weights)
            served[tenant] += len(row.tokens)
    shares = [count / weights[tenant] for tenant, count in served.items()]
    assert min(shares) / max(shares) >= 0.95


def test_pure():
    code = (
        "import sys, blockc_runtime.scheduler; "
        "bad = {'torch', 'numpy', 'asyncio'} & set(sys.modules); sys.exit(', '.join(bad) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
