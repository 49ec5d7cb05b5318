"""What the scheduler decides: budgets, launches, refusals, fairness, resuming."""

from __future__ import annotations

import subprocess
import sys

import pytest

from blockc_runtime.step import Fault, RowResult, StepResult

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
        (request("r", [1], app=6), "does not have this model"),
        (request("r", [1], chain=-1), "does not have this model"),
    ],
)
def test_what_can_never_run_is_refused(own, words):
    run = Run(limits(pages=(12, 40)))
    run.admit(own)
    assert run.ends["r"].reason == "error"
    assert words in run.ends["r"].message
    assert not run.scheduler.has_work


def test_a_full_queue_refuses():
    run = Run(limits(), {"max_waiting": 2})
    for number in range(3):
        run.admit(request(f"r{number}", [1], app=0))
    run.admit(request("of another tenant", [1], app=1))
    assert list(run.ends) == ["r2"]
    assert "2 requests are waiting already" in run.ends["r2"].message
    run.drain()
    assert run.ends["r0"].reason == "length"


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


def test_an_id_in_use_is_refused_until_its_last_step_is_done():
    run = Run(limits())
    run.admit(request("r", [1, 2]))
    with pytest.raises(ValueError, match="here already"):
        run.scheduler.admit(request("r", [3]))
    step = run.scheduler.schedule(0.0)
    run.scheduler.cancel("r")
    with pytest.raises(ValueError, match="here already"):
        run.scheduler.admit(request("r", [3]))
    run.executor.submit(step)
    assert run.scheduler.complete(step, run.executor.collect(), 0.0) == ()
    assert run.scheduler.admit(request("r", [3])) == ()


def test_cancel_at_every_stage_ends_once():
    run = Run(limits(max_rows=1))
    for name in ("running", "waiting"):
        run.admit(request(name, [1, 2, 3], max_tokens=4))
    run.step()
    for name in ("waiting", "running", "running", "unknown"):
        run.take(run.scheduler.cancel(name))
    assert [end.reason for end in run.ends.values()] == ["cancelled", "cancelled"]
    assert not run.scheduler.has_work
    assert run.held_pages() == 0


def test_steps_in_flight_have_different_requests():
    run = Run(limits(max_rows=2), {"max_running": 4})
    for number in range(4):
        run.admit(request(f"r{number}", [number + 1]))
    first, second = run.scheduler.schedule(0.0), run.scheduler.schedule(0.0)
    assert [row.request for row in first.rows] + [row.request for row in second.rows] == ["r0", "r1", "r2", "r3"]
    assert run.scheduler.schedule(0.0) is None
    assert run.scheduler.gauges().steps_in_flight == 2


def _preempting():
    """Two requests whose contexts do not fit together; the second is of the tenant that was served more."""
    run = Run(limits(pages=(8, 8), weights=(1.0, 1.0)))
    run.admit(request("keeps", [1, 2, 3], app=0, max_tokens=20))
    run.admit(request("gives", range(9), app=1, max_tokens=20))
    while not run.scheduler.gauges().counts.preemptions:
        run.step()
    return run


def test_the_youngest_of_the_most_served_tenant_gives_its_pages():
    run = _preempting()
    assert [row.request for row in run.step().rows] == ["keeps"]
    run.drain()
    assert list(run.ends) == ["keeps", "gives"]
    assert run.tokens["gives"] == alone(request("gives", range(9), max_tokens=20))


def test_preemption_changes_neither_indices_nor_charges():
    run = _preempting()
    spent = run.scheduler.service[1]
    given = len(run.tokens["gives"])
    while True:
        step = run.step()
        row = next((row for row in step.rows if row.request == "gives"), None)
        if row is not None and row.samples:
            break
    assert row.output_index == given
    assert run.scheduler.service[1] == spent + 2.0, "one token, and no prompt a second time"


def _fault(scope):
    return RowResult(tokens=(), logprobs=(), fault=Fault(scope=scope, message=f"a {scope} fault"))


@pytest.mark.parametrize("scope", ["row", "launch"])
def test_a_fault_of_rows_ends_their_requests_only(scope):
    run = Run(limits())
    for number in range(3):
        run.admit(request(f"r{number}", [number, 1, 2]))
    step = run.scheduler.schedule(0.0)
    run.executor.submit(step)
    rows = run.executor.collect().rows
    run.take(run.scheduler.complete(step, StepResult(step=step.id, rows=(rows[0], _fault(scope), rows[2])), 0.0))
    assert {name: end.message for name, end in run.ends.items()} == {"r1": f"a {scope} fault"}
    run.drain()
    assert run.tokens["r0"] == alone(request("r0", [0, 1, 2]))


def test_a_lost_worker_costs_nothing_but_time_up_to_a_limit():
    run = Run(limits(), {"worker_tries": 3})
    prompt = range(9)
    run.admit(request("r", prompt))
    run.step()
    for tries in (1, 2, 3):
        step = run.scheduler.schedule(0.0)
        assert step.rows[0].start == 0 if tries > 1 else step.rows[0].start == 9, "nothing cached survives a worker"
        run.take(run.scheduler.complete(step, StepResult(step=step.id, rows=(_fault("worker"),)), 0.0))
        assert len(run.ends) == (tries == 3)
        assert run.held_pages() == 0
    assert run.ends["r"].message == "a worker fault"
    assert run.tokens["r"] == alone(request("r", prompt))[:1]


def test_what_a_step_in_flight_brings_after_the_worker_was_lost_does_not_count():
    run = Run(limits(max_rows=1), {"max_running": 2})
    for name in ("a", "b"):
        run.admit(request(name, range(9)))
    lost, late = run.scheduler.schedule(0.0), run.scheduler.schedule(0.0)
    for step in (lost, late):
        run.executor.submit(step)
    run.executor.collect()
    brought = run.executor.collect()
    assert run.scheduler.complete(lost, StepResult(step=lost.id, rows=(_fault("worker"),)), 0.0) == ()
    assert (run.scheduler.running, run.scheduler.waiting) == (1, 1), "one is in flight still"
    assert run.scheduler.complete(late, brought, 0.0) == (), "good, but of the worker that was lost"
    assert (run.scheduler.running, run.scheduler.waiting) == (0, 2)
    run.executor.close()
    assert run.scheduler.schedule(0.0).rows[0].start == 0


def test_an_answer_to_another_step_counts_as_a_lost_worker():
    run = Run(limits())
    run.admit(request("r", [1, 2, 3]))
    step = run.scheduler.schedule(0.0)
    assert run.scheduler.complete(step, StepResult(step=step.id, rows=()), 0.0) == ()
    assert run.scheduler.waiting == 1
    run.drain()
    assert run.tokens["r"] == alone(request("r", [1, 2, 3]))


def test_too_few_tokens_from_the_executor_are_an_error_of_the_row():
    run = Run(limits())
    run.admit(request("r", [1, 2, 3]))
    step = run.scheduler.schedule(0.0)
    empty = StepResult(step=step.id, rows=(RowResult(tokens=(), logprobs=()),))
    run.take(run.scheduler.complete(step, empty, 0.0))
    assert run.ends["r"].reason == "error"
    assert "drew 0 tokens" in run.ends["r"].message


def test_pages_of_one_model_do_not_hold_up_another():
    run = Run(limits(pages=(12, 12)))
    run.admit(request("large", range(30), chain=0, max_tokens=10))
    run.step()
    run.admit(request("too large for now", range(100, 130), chain=0, max_tokens=10))
    run.admit(request("of another model", range(5), chain=4))
    assert {row.request for row in run.step().rows} == {"large", "of another model"}
    run.drain()


def test_within_a_tenant_models_take_turns_by_arrival():
    run = Run(limits(max_rows=1))
    chains = [4, 0, 4, 0, 0, 4]
    for number, chain in enumerate(chains):
        run.admit(request(f"r{number}", [number], chain=chain, max_tokens=2))
    run.drain()
    assert list(run.ends) == [f"r{number}" for number in range(len(chains))]


def test_a_chunk_is_as_long_as_the_pages_of_a_window_allow():
    run = Run(limits(pages=(40, 5), windows=(None, 6), max_batched_tokens=64))
    own = request("r", range(40), max_tokens=4)
    run.admit(own)
    assert [len(row.tokens) for row in run.step().rows] == [20]
    run.drain()
    assert run.tokens["r"] == alone(own)


def test_steady_decoding_repeats_its_launches():
    run = Run(limits())
    for number in range(3):
        run.admit(request(f"r{number}", [number], max_tokens=6))
    run.step()
    assert run.step().launches is run.step().launches


def test_pure():
    code = (
        "import sys, blockc_runtime.scheduler; "
        "bad = {'torch', 'numpy', 'asyncio'} & set(sys.modules); sys.exit(', '.join(bad) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
