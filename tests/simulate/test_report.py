"""Figures of a run, against what can be worked out by hand."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from fractions import Fraction

import pytest

from blockc.simulate import Targets, Workload, chrome_trace, report, simulate, study, targets_of
from blockc.simulate.report import jain_index
from blockc.simulate.study import estimate
from blockc.simulate.text import render_comparison, render_report, report_document
from blockc.simulate.workload import Arrival
from blockc.spec.deployment import App, Slo, Traffic
from tests.runtime.scheduler.harness import limits
from tests.simulate.fleets import fleet
from tests.support.deployments import AT, deployment


def run_of(*arrivals: Arrival, own=None, **options):
    return simulate(fleet(own or limits(pages=(200, 200))), Workload(arrivals=arrivals, source="by hand"), **options)


def arrival(at_s: float, app: int = 0, prompt: int = 4, output: int = 5) -> Arrival:
    return Arrival(at_s=at_s, app=app, prompt_tokens=prompt, output_tokens=output)


def test_latencies_of_requests_alone() -> None:
    run = run_of(arrival(0.0), arrival(10.0, output=9))
    pricer = run.fleet.instances[0].pricer
    prefill = pricer.constant(1) + pricer.launches({0: 4}, {0: 1}) + pricer.attention(0, 0, 4)
    decodes = [pricer.constant(1) + pricer.launches({0: 1}, {0: 1}) + pricer.attention(0, 4 + i, 1) for i in range(8)]
    first, second = run.served
    assert (first.first, first.end) == (prefill, prefill + sum(decodes[:4]))
    assert (second.first, second.end) == (10 * 10**15 + prefill, 10 * 10**15 + prefill + sum(decodes))
    found = report(run, {})
    assert found.total.ttft is not None
    assert found.total.ttft.p50_s == pytest.approx(prefill / 1e15)
    assert found.apps[0].tpot is not None
    assert found.apps[0].tpot.mean_s == pytest.approx((sum(decodes[:4]) / 4 + sum(decodes) / 8) / 2 / 1e15)
    assert found.total.output_tokens == 14
    assert found.instances[0].busy == pytest.approx(run.instances[0].totals.busy / second.end)
    assert found.instances[0].mean_rows == 1.0
    assert found.apps[1].requests == 0
    assert found.apps[1].ttft is None


def test_good_requests_meet_every_target() -> None:
    run = run_of(arrival(0.0), *(arrival(5.0, app=1) for _ in range(4)), arrival(9.0, app=2))
    alone_s = (run.served[0].first or 0) / 1e15
    found = report(
        run, {run.fleet.apps[0].address: Targets(ttft_s=alone_s), run.fleet.apps[1].address: Targets(e2e_s=1e-9)}
    )
    assert [(app.measured, app.good) for app in found.apps[:3]] == [(1, 1), (4, 0), (0, 0)]
    assert found.total.attainment == pytest.approx(1 / 5)
    assert found.total.goodput_rps == pytest.approx(1 / 9)
    assert found.apps[2].attainment is None


def test_refused_requests_are_not_good() -> None:
    run = run_of(arrival(0.0, prompt=500), arrival(0.0))
    found = report(run, {run.fleet.apps[0].address: Targets(ttft_s=100.0)})
    assert found.total.refused == 1
    assert found.total.attainment == 0.5
    assert "1 request longer" in render_report(found)


def test_fairness_is_of_what_was_given_by_the_end_of_the_trace() -> None:
    assert jain_index([1.0, 1.0, 1.0]) == pytest.approx(1.0)
    assert jain_index([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain_index([]) == 1.0
    crowd = [arrival(0.0, app=app, output=40) for app in (0, 1, 3, 4) for _ in range(4)]
    found = report(run_of(*crowd, arrival(0.02, app=2, output=1)), {})
    assert 0.6 < found.jain < 1.0  # tenant 2 came last and has nothing yet; the others have some
    fair = report(run_of(*crowd, arrival(60.0, app=2, output=1)), {})
    assert fair.jain == pytest.approx(0.75, abs=0.1)  # all but tenant 2 have everything
    assert found.total.output_tokens == fair.total.output_tokens


def test_targets_of_a_spec_are_those_of_the_highest_percentile(tmp_path) -> None:
    slo = Slo(targets_s={"ttft_p50": Fraction(1, 10), "ttft_p95": Fraction(1, 2), "e2e_p99": Fraction(4)})
    plain = deployment(tmp_path)
    app = App(tenant="t", name="a", model="base", traffic=Traffic(), slo=slo, span=AT, model_span=AT)
    tenant = next(iter(plain.tenants.values()))
    changed = replace(plain, tenants={"t": replace(tenant, apps=(app,))})
    assert targets_of(changed) == {"t/a": Targets(ttft_s=0.5, e2e_s=4.0)}


def test_documents_are_json_and_texts_are_in_order() -> None:
    found = report(run_of(arrival(0.0), arrival(0.0, app=1)), {})
    document = json.loads(json.dumps(report_document(found), allow_nan=False))
    assert document["total"]["requests"] == 2
    assert document["apps"][0]["ttft"]["p95_s"] > 0
    lines = render_report(found).splitlines()
    assert lines[0].startswith("SIMULATED  ours on 1 device")
    assert [line.split()[0] for line in lines if line.startswith("tenant")] == [app.address for app in found.apps]
    assert lines[-1].startswith("INSTANCE n/d0: busy 100.0 %")


def test_a_chrome_trace_accounts_for_every_step_and_request() -> None:
    run = run_of(arrival(0.0), arrival(0.001, app=1), keeps_moments=True)
    events = list(chrome_trace(run))
    steps = [event for event in events if event["ph"] == "X"]
    assert sum(event["args"]["steps"] for event in steps) == run.instances[0].totals.steps
    assert math.isclose(sum(event["dur"] for event in steps), run.instances[0].totals.busy / 1e9)
    assert all(late["ts"] >= early["ts"] + early["dur"] - 1e-6 for early, late in itertools.pairwise(steps))
    begins = {event["id"]: event["ts"] for event in events if event["ph"] == "b"}
    ends = {event["id"]: event["ts"] for event in events if event["ph"] == "e"}
    assert begins.keys() == ends.keys() == {0, 1}
    assert all(begins[number] < ends[number] for number in begins)
    json.dumps(events)


def test_intervals_are_students() -> None:
    assert estimate([3.0]).half_width is None
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3))
    assert estimate([5.0] * 50).half_width == 0.0


def test_a_study_gives_every_fleet_the_same_loads() -> None:
    seeds = []

    def workload(seed: int) -> Workload:
        seeds.append(seed)
        return Workload(arrivals=(arrival(0.0), arrival(seed / 1000)), source=f"seed {seed}")

    own = fleet(limits(pages=(200, 200)))
    found = study([own, own], workload, {}, seed=4, repeats=3)
    assert seeds == [4, 5, 6]
    assert [item.figures for item in found] == [found[0].figures] * 2
    assert found[0].figures["ttft_p95_s"].half_width is not None
    assert len(render_comparison(found).splitlines()) == 3


def test_apps_of_the_lowest_priority_go_first_within_their_tenant() -> None:
    """Two apps of one tenant, one request at a time: who comes later goes before who waits."""
    own = fleet(limits(pages=(200, 200), max_rows=1))
    assert own.apps[0].tenant == own.apps[3].tenant
    requests = [arrival(0.0), *(arrival(1e-6 * (number + 1), app=3 * (number % 2)) for number in range(8))]
    workload = Workload(arrivals=tuple(requests), source="by hand")

    def order(first: int, last: int) -> list[int]:
        priorities = {0: first, 3: last}
        apps = tuple(replace(app, priority=priorities.get(index, 0)) for index, app in enumerate(own.apps))
        run = simulate(replace(own, apps=apps), workload)
        return [requests[item.number].app for item in sorted(run.served, key=lambda item: item.end)][1:]

    assert order(0, 1) == [0] * 4 + [3] * 4
    assert order(1, 0) == [3] * 4 + [0] * 4
