"""Steps in which rows pass a part of the layers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blockc.simulate.simulate import simulate
from blockc.simulate.workload import Arrival, Workload
from tests.runtime.scheduler.harness import limits
from tests.simulate.fleets import RATES, fleet


@pytest.mark.parametrize("app", range(5))
def test_parts_take_together_what_the_whole_takes(app: int) -> None:
    """Beside what each step takes. Alone, that is: who decodes beside them passes all layers in each."""
    prompt = Workload(arrivals=(Arrival(at_s=0.0, app=app, prompt_tokens=40, output_tokens=1),), source="one")
    own = limits(max_rows=2, max_batched_tokens=64)
    whole = simulate(fleet(own), prompt).instances[0].totals
    parts = simulate(fleet(replace(own, prefill_parts=4)), prompt).instances[0].totals
    assert (whole.steps, parts.steps) == (1, 3)
    assert whole.tokens == parts.tokens == 40
    more = 2 * (RATES.step_s + RATES.row_s) * 1e15
    assert parts.busy - whole.busy == pytest.approx(more, abs=200)


def test_a_token_is_not_kept_waiting_by_a_long_prompt() -> None:
    long = Arrival(at_s=0.001, app=1, prompt_tokens=60, output_tokens=1)
    short = Arrival(at_s=0.0, app=0, prompt_tokens=2, output_tokens=30)
    own = limits(max_rows=2, max_batched_tokens=64)
    longest = []
    for parts in (1, 8):
        run = simulate(
            fleet(replace(own, prefill_parts=parts)), Workload(arrivals=(short, long), source="two"),
            folds=False, keeps_moments=True,
        )  # fmt: skip
        longest.append(max(moment.end - moment.start for moment in run.instances[0].moments))
    assert longest[1] < longest[0] / 2
