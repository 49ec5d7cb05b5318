"""The benchmark that holds the simulator against the engine: its parts, and the whole of it at a tiny size."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fleet import Shape
from benchmarks.simulator_error import Settings, joined, load_of, of_prices, run, simulated_figures
from benchmarks.simulator_summary import errors, held, spread, summary, table
from benchmarks.timed_engine import Clock, Reference, core_waits_s, figures, served
from blockc.cost import StepPricer, plan_work
from blockc.cost.fit import price_s
from blockc.diag import Diagnostics
from blockc.simulate import rates_of
from blockc_runtime.executor.null import NullExecutor
from tests.plan.fleet import fleet_plan

PLAN = fleet_plan()
RATES = rates_of(PLAN, diags=Diagnostics())
TINY = Shape(hidden=64, layers=2, heads=2, kv_heads=2, intermediate=128, vocab=512)


def test_the_engine_serves_a_load_in_real_time() -> None:
    workload = load_of(PLAN, 60.0, 0.5, seed=1)
    channel = served(PLAN, NullExecutor(PLAN, step_s=0.001), workload, clock=Clock())
    assert len(channel.end_s) == len(workload.arrivals) > 10
    assert not channel.refused
    assert {int(name): count for name, count in channel.tokens.items()} == {
        number: item.output_tokens for number, item in enumerate(workload.arrivals)
    }
    late = [channel.first_s[str(number)] - item.at_s for number, item in enumerate(workload.arrivals)]
    assert min(late) > 0.001
    found = figures(channel, workload)
    assert found["ttft_p50_ms"] <= found["ttft_p95_ms"]
    assert found["tpot_p50_ms"] >= 1.0
    assert found["tokens_per_s"] > 0


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this system does not say how long threads wait")
def test_threads_that_share_a_core_wait_for_it() -> None:
    core, ended = min(os.sched_getaffinity(0)), threading.Event()
    data = bytes(1 << 20)

    def work() -> None:
        os.sched_setaffinity(0, {core})  # of this thread
        while not ended.is_set():
            hashlib.sha256(data)  # without the interpreter's lock

    threads = [threading.Thread(target=work) for _ in range(2)]
    before_s, late_s = core_waits_s(), time.monotonic() + 20
    for thread in threads:
        thread.start()
    while core_waits_s() < before_s + 0.02 and time.monotonic() < late_s:
        time.sleep(0.005)
    waited_s = core_waits_s() - before_s
    ended.set()
    for thread in threads:
        thread.join()
    assert waited_s >= 0.02


def test_works_side_by_side_cost_what_each_costs() -> None:
    other = fleet_plan(adapters=3)
    works = [plan_work(PLAN), plan_work(other)]
    both = joined(works)
    first = len(works[0].chains)
    own, apart = StepPricer(both, RATES["cpu"]), StepPricer(works[1], RATES["cpu"])
    for chain in range(len(works[1].chains)):
        rows = {chain: 3}
        assert own.launches({chain + first: 3}, {chain + first: 3}) == apart.launches(rows, rows)
        assert own.attention(chain + first, 40, 2) == apart.attention(chain, 40, 2)


def test_errors_are_of_what_was_measured() -> None:
    workload = load_of(PLAN, 60.0, 0.5, seed=1)
    found = simulated_figures(PLAN, RATES["cpu"], workload)
    assert errors(found, found) == dict.fromkeys(found, 0.0)
    assert errors({"a": 3.0}, {"a": 2.0}) == {"a": 50.0}
    slow = simulated_figures(PLAN, replace(RATES["cpu"], step_s=1e-2), workload)
    assert slow["tpot_p50_ms"] > found["tpot_p50_ms"]


def test_the_clock_of_a_load_stands_while_the_reference_runs() -> None:
    clock = Clock()
    began_s, wall_s = clock.now_s(), time.monotonic()
    with clock.standing():
        time.sleep(0.05)
    assert clock.now_s() - began_s < 0.05 <= time.monotonic() - wall_s

    reference = Reference(PLAN, NullExecutor(PLAN, step_s=0.002), clock)
    workload = load_of(PLAN, 60.0, 0.5, seed=1)
    channel = served(PLAN, NullExecutor(PLAN, step_s=0.001), workload, clock=clock, reference=reference)
    assert not channel.refused
    assert len(reference.times_s) == 1
    kinds = {step.kind for step in channel.steps}
    assert kinds >= {"decode", "prompt"}
    # Each step once, and nothing of the reference in them.
    assert sum(len(step.rows) for step in channel.steps) >= sum(channel.tokens.values())
    assert sum(step.seconds for step in channel.steps) <= max(channel.end_s.values())
    assert min(reference.taken()) >= 9 * 0.002
    assert not reference.times_s


def test_by_cpu_time_waits_are_skipped() -> None:
    clock = Clock(by_cpu=True)
    workload = load_of(PLAN, 2.0, 30.0, seed=1)
    began_s = time.monotonic()
    channel = served(PLAN, NullExecutor(PLAN), workload, clock=clock)
    assert max(channel.end_s.values()) >= workload.arrivals[-1].at_s > 20
    assert time.monotonic() - began_s < 20


def test_steps_are_of_their_price() -> None:
    channel = served(PLAN, NullExecutor(PLAN), load_of(PLAN, 60.0, 0.5, seed=1), clock=Clock())
    pricer = StepPricer(plan_work(PLAN), RATES["cpu"])
    channel.steps = [replace(step, seconds=1.5 * price_s(step, pricer)) for step in channel.steps]
    assert set(of_prices(channel, pricer).values()) == {1.5}


def test_runs_that_held_are_told_from_all() -> None:
    assert [held(value) for value in (0.94, 0.96, 1.04, 1.06)] == [False, True, True, False]
    assert spread([{"a": 9.0}, {"a": 10.0}, {"a": 12.0}]) == {"a": 30.0}

    def entry(reference: float, error: float, at_speed: float) -> dict[str, object]:
        return {
            "reference": reference,
            "error_percent": {"tokens_per_s": 0.5, "ttft_p50_ms": error},
            "error_at_speed_percent": {"tokens_per_s": 0.5, "ttft_p50_ms": at_speed},
        }

    runs = [{"own": entry(1.0, -4.0, -4.0), "others": entry(1.5, 20.0, 8.0)},
            {"own": entry(1.3, -30.0, 2.0), "others": entry(1.0, 10.0, 10.0)}]  # fmt: skip
    found = summary([{"runs": runs, "spread_percent": {"tokens_per_s": 1.0, "ttft_p50_ms": 3.0}}])
    assert found["own"]["all"]["mean_percent"] == 17.0
    assert found["own"]["held"] | {"throughput_largest_percent": 0} == {
        "runs": 1, "median_percent": 4.0, "mean_percent": 4.0, "largest_percent": 4.0, "throughput_largest_percent": 0,
    }  # fmt: skip
    assert found["own"]["at_speed"]["mean_percent"] == 3.0
    assert found["others"]["held"]["mean_percent"] == 10.0
    assert found["spread"]["largest_percent"] == 3.0


@pytest.mark.slow
def test_the_whole_of_it(tmp_path: Path) -> None:
    settings = Settings(budget_s=1.0, seconds=1.0, parts=(0.3, 0.6), repeats=1)
    found = run(tmp_path, {"tiny": TINY}, {"other": replace(TINY, hidden=96, heads=3, kv_heads=3)}, settings)
    assert [row["part"] for row in found["rows"]] == [0.3, 0.6]
    for row in found["rows"]:
        assert 2 <= len(row["runs"]) <= 3
        assert all(value > 0 for run in row["runs"] for value in run["measured"].values())
        assert all(value > 0 for own in row["simulated"].values() for value in own.values())
        assert set(row["lever_percent"]) == set(row["spread_percent"]) == set(row["runs"][0]["measured"])
    assert found["fits"]["others"]["samples"] > 4
    runs = sum(len(row["runs"]) for row in found["rows"])
    assert len(table(found).splitlines()) >= 1 + runs + 2 * 2 + 2 * 2
