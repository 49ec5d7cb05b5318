"""Measuring: with an executor that takes exactly what its price says, the price is what is found."""

from __future__ import annotations

import pytest

from blockc.cost import TICKS_PER_S, DeviceRates, StepPricer, plan_work
from blockc.cost.fit import fit_rates
from blockc.measure import MeasuringError, measure
from blockc_runtime.executor.null import NullExecutor
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
        tokens: dict[int, int] = {}
        samples: dict[int, int] = {}
        ticks = self._pricer.constant(len(step.rows))
        for row in step.rows:
            tokens[row.chain] = tokens.get(row.chain, 0) + len(row.tokens)
            samples[row.chain] = samples.get(row.chain, 0) + row.samples
            ticks += self._pricer.attention(row.chain, row.start, len(row.tokens))
        self.now_s += (ticks + self._pricer.launches(tokens, samples)) / TICKS_PER_S
        super().submit(step)


def test_what_is_measured_is_what_steps_took() -> None:
    executor = Priced()
    found = measure(PLAN, executor, repeats=2, clock=executor.clock)
    assert len({sample.rows for sample in found}) == len(found) > 30
    fit = fit_rates(found, plan_work(PLAN))
    assert fit.error_p95 < 0.01
    assert fit.rates.bytes_per_s == pytest.approx(RATES.bytes_per_s, rel=0.1)


def test_loads_have_few_and_many_rows_on_one_chain_and_on_all() -> None:
    executor = Priced()
    found = measure(PLAN, executor, repeats=1, clock=executor.clock)
    rows = [sample.rows for sample in found]
    assert {len(row) for row in rows} >= {1, 2, 4, 8}
    assert {len({item.chain for item in row}) for row in rows} >= {1, 5}
    assert max(item.tokens for row in rows for item in row) >= 64


def test_no_load_begins_after_the_time_is_over() -> None:
    executor = Priced()
    done = []
    measure(PLAN, executor, repeats=1, budget_s=1e-9, clock=executor.clock, on_load=lambda n, of: done.append((n, of)))
    assert len(done) == 1
    assert done[0][1] > 10


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
