"""Pipelines on a virtual clock: one stage is a plain cell, several lose and invent nothing and overlap."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc.cost import PlanWork, StepPricer
from blockc.simulate.fleet import Fleet, StageHop
from blockc.simulate.simulate import Run, simulate
from blockc.simulate.workload import Arrival, Workload
from blockc_runtime.router import Link
from tests.runtime.scheduler.harness import limits
from tests.simulate.fleets import RATES, fleet, segment, taking_turns, work_of
from tests.simulate.test_folding import outcome, own_limits, workloads


def staged(plain: Fleet, works: list[PlanWork], *, bytes_per_s: float = 1e7) -> Fleet:
    hop = StageHop(link=Link(bytes_per_s=bytes_per_s, latency_s=1e-5), token_bytes=256)
    stages = tuple(StepPricer(work, RATES) for work in works)
    instances = tuple(replace(own, stages=stages, hops=(hop,) * (len(works) - 1)) for own in plain.instances)
    return replace(plain, instances=instances)


def parts(own, count: int) -> list[PlanWork]:
    """Segments in turn to one of the parts; what chains have of their own is in the first."""
    whole = work_of(own)
    nothing = segment(blocks=0, read_bytes=0, token_flops=0)
    return [
        PlanWork(
            segments=tuple(item if index % count == part else nothing for index, item in enumerate(whole.segments)),
            chains=whole.chains
            if part == 0
            else tuple(replace(c, attention=(), side_bytes=0, side_token_flops=0) for c in whole.chains),
        )
        for part in range(count)
    ]


def given_to(run: Run) -> list[tuple[int, int, str | None]]:
    return [(item.number, item.tokens, item.refusal) for item in run.served]


@settings(max_examples=60, deadline=None)
@given(workload=workloads(), own=own_limits, slots=st.sampled_from([0, 2]))
def test_one_stage_is_a_plain_cell(workload, own, slots) -> None:
    own = replace(own, prefill_parts=1, overlaps=False)
    own = taking_turns(own, slots) if slots else own
    plain = fleet(own)
    assert outcome(simulate(staged(plain, parts(own, 1)), workload)) == outcome(simulate(plain, workload, folds=False))


@settings(max_examples=50, deadline=None)
@given(workload=workloads(), own=own_limits, stages=st.sampled_from([2, 3]))
def test_stages_lose_and_invent_no_tokens(workload, own, stages) -> None:
    own = replace(own, prefill_parts=1, overlaps=False)
    plain = fleet(own)
    run = simulate(staged(plain, parts(own, stages)), workload)
    before = simulate(plain, workload)
    assert [(s.number, s.tokens, s.refusal) for s in run.served] == [
        (s.number, s.tokens, s.refusal) for s in before.served
    ]
    (instance,) = run.instances
    assert instance.hop_bytes == 256 * instance.totals.tokens * (stages - 1)
    assert instance.totals.sampled_tokens == sum(s.tokens for s in run.served)
    assert outcome(run) == outcome(simulate(staged(plain, parts(own, stages)), workload, folds=False))


def test_many_requests_fill_all_stages_and_one_alone_does_not() -> None:
    own = limits(pages=(400, 400), max_rows=8, max_batched_tokens=32)
    plain = fleet(own)

    def end(count: int, stages: int) -> int:
        arrivals = tuple(Arrival(at_s=0.0, app=0, prompt_tokens=4, output_tokens=60) for _ in range(count))
        made = staged(plain, parts(own, stages), bytes_per_s=1e12) if stages else plain
        return max(item.end for item in simulate(made, Workload(arrivals=arrivals, source="at once")).served)

    assert end(1, 2) > end(1, 0)  # a step more, and the way between them
    assert end(8, 2) < 2 * end(4, 2)  # two steps are under way
    assert end(8, 2) < 1.5 * end(4, 2)


def test_a_slow_link_is_what_holds_up_a_pipeline() -> None:
    own = limits(pages=(400, 400))
    workload = Workload(arrivals=(Arrival(at_s=0.0, app=0, prompt_tokens=4, output_tokens=10),), source="one")
    fast, slow = (
        simulate(staged(fleet(own), parts(own, 2), bytes_per_s=rate), workload).served[0].end for rate in (1e9, 1e5)
    )
    # Ten steps: four tokens of the prompt, then one at a time.
    assert slow - fast == pytest.approx((4 + 9) * 256 * (1e-5 - 1e-9) * 1e15)
