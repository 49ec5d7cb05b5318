"""Measuring: with an executor that takes exactly what its price says, the price is what is found."""

from __future__ import annotations

import pytest

from blockc.cost import TICKS_PER_S, DeviceRates, StepPricer, plan_work
from blockc.cost.fit import fit_rates
from blockc.measure import MeasuringError, measure
from blockc.simulate.step_price import step_price
from blockc_runtime.executor.null import NullExecutor
from blockc_runtime.limits import engine_limits
from blockc_runtime.step import Fault, RowResult, Step, StepResult
from tests.plan.fleet import fleet_plan

PLAN = fleet_plan(adapters=3, apps=[("acme", f"app{chain}", chain) for chain in range(5)])
RATES = DeviceRates(flops_per_s=5e9, bytes_per_s=3e8, block_s=2e-5, row_s=1e-5, step_s=3e-4)


class Priced(NullExecutor):
    """Time passes only while it runs, and as much as the price of the step."""

    def __init__(self) -> None:
        super().__init__(PLAN)
        self.now_s = 0.0
        self.steps: list[Step] = []
        self._pricer = StepPricer(plan_work(PLAN), RATES)

    def clock(self) -> float:
        return self.now_s

    def submit(self, step: Step) -> None:
        self.steps.append(step)
        self.now_s += step_price(step, self._pricer, engine_limits(PLAN))[0] / TICKS_PER_S
        super().submit(step)


def test_what_is_measured_is_what_steps_took() -> None:
    executor = Priced()
    found = measure(PLAN, executor, repeats=2, clock=executor.clock)
    assert len({(sample.rows, sample.steps) for sample in found}) == len(found) > 30
    fit = fit_rates(found, plan_work(PLAN))
    assert fit.error_p95 < 0.01
    assert fit.rates.bytes_per_s == pytest.approx(RATES.bytes_per_s, rel=0.1)
    assert fit.rates.step_s == pytest.approx(RATES.step_s, rel=0.05)


def test_a_moment_of_disturbance_spoils_no_sample() -> None:
    executor = Priced()
    quiet = {(sample.rows, sample.steps): sample.seconds for sample in measure(PLAN, executor, clock=executor.clock)}
    busy = Priced()
    ran_s = executor.now_s

    def clock() -> float:
        """Of a machine on which everything takes ten times as long from 0.4 to 0.6 of the time that it would take."""
        begins_s, ends_s = 0.4 * ran_s, 0.6 * ran_s
        return busy.now_s + 9 * (min(max(busy.now_s, begins_s), ends_s) - begins_s)

    for sample in measure(PLAN, busy, clock=clock):
        assert sample.seconds == pytest.approx(quiet[sample.rows, sample.steps])


def test_loads_have_few_and_many_rows_on_one_chain_and_on_all() -> None:
    executor = Priced()
    found = measure(PLAN, executor, repeats=1, clock=executor.clock)
    rows = [sample.rows for sample in found]
    assert {len(row) for row in rows} >= {1, 2, 4, 8}
    assert {len({item.chain for item in row}) for row in rows} >= {1, 5}
    assert max(item.tokens for row in rows for item in row) >= 64


def test_prompts_come_while_others_decode() -> None:
    executor = Priced()
    found = [sample for sample in measure(PLAN, executor, repeats=1, clock=executor.clock) if sample.kind == "mixed"]
    sizes = {tuple(sorted(row.tokens for row in sample.rows)) for sample in found}
    assert sizes >= {(*(1,) * (rows - 1), tokens) for rows in (2, 4, 8) for tokens in (16, 64)}


def test_no_load_begins_after_the_time_is_over() -> None:
    executor = Priced()
    done = []
    measure(PLAN, executor, repeats=1, budget_s=1e-9, clock=executor.clock, on_load=lambda n, of: done.append((n, of)))
    assert [number for number, _ in done] == [1, 2]  # one that warms up, and one that counts
    assert done[0][1] > 10


def test_where_time_is_short_repeats_are_left_out_before_loads() -> None:
    executor = Priced()
    all_of_it = len(measure(PLAN, executor, repeats=3, clock=executor.clock))
    took_s = executor.now_s

    def measured(budget_s: float) -> int:
        executor = Priced()
        found = measure(PLAN, executor, repeats=3, budget_s=budget_s, clock=executor.clock)
        assert executor.now_s < budget_s + 0.1 * took_s  # what has begun ends
        return len(found)

    assert measured(0.55 * took_s) == all_of_it
    assert 10 < measured(0.25 * took_s) < all_of_it


def test_prompts_pass_in_parts() -> None:
    executor = Priced()
    found = measure(PLAN, executor, repeats=1, clock=executor.clock)
    assert {sample.steps for sample in found} >= {1, 2}
    assert any(row.blocks is not None for step in executor.steps for row in step.rows)


def test_a_step_that_fails_is_no_measurement() -> None:
    class Failing(Priced):
        def collect(self) -> StepResult:
            step = self.steps[-1]
            fault = Fault(scope="worker", message="out of memory")
            return StepResult(
                step=step.id, rows=tuple(RowResult(tokens=(), logprobs=(), fault=fault) for _ in step.rows)
            )

    executor = Failing()
    with pytest.raises(MeasuringError, match="out of memory"):
        measure(PLAN, executor, clock=executor.clock)
