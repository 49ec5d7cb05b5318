"""Requests that move while they are under way: for load, from drained instances, from failed ones."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc.cost import TICKS_PER_S, ticks
from blockc.diag import Diagnostics
from blockc.plan import RouteEntry
from blockc.simulate import chrome_trace, rates_of, report
from blockc.simulate.fleet import Fleet
from blockc.simulate.moves import LOST, Outage, outage_of
from blockc.simulate.simulate import Run, simulate
from blockc.simulate.workload import Arrival, Workload
from blockc_runtime.router import Link, Network
from tests.plan.fleet import fleet_plan
from tests.runtime.scheduler.harness import limits
from tests.simulate.fleets import fleet
from tests.simulate.test_folding import outcome, own_limits, workloads
from tests.simulate.test_pipeline import parts, staged

# The package has a function of that name, too.
simulating = importlib.import_module("blockc.simulate.simulate")
FAST, SLOW = Link(bytes_per_s=1e12, latency_s=1e-6), Link(bytes_per_s=1.0, latency_s=1.0)


def copies(own, count: int, link: Link | None, **changed) -> Fleet:
    network = Network(nodes=tuple(map(str, range(count))), between=link)
    return replace(fleet(own, copies=count, network=network), **{"moves": True, **changed})


def happened(run: Run):
    return outcome(run), run.hand_overs, run.sent_bytes, run.routed


outages = st.lists(
    st.builds(
        Outage, at_s=st.floats(0, 0.6, allow_subnormal=False), instance=st.integers(0, 2), is_failure=st.booleans()
    ),
    max_size=2, unique_by=lambda item: item.instance,
)  # fmt: skip


@settings(max_examples=10, deadline=None)
@given(
    workload=workloads(), own=own_limits, link=st.sampled_from([FAST, SLOW, None]), out=outages,
    caches=st.booleans(), stages=st.sampled_from([0, 0, 2]),
)  # fmt: skip
def test_whoever_moves_ends_once_with_all_its_tokens(workload, own, link, out, caches, stages) -> None:
    own = replace(own, prefill_parts=1, overlaps=False) if stages else own
    made = copies(own, 3, link, outages=tuple(out), caches=caches)
    made = staged(made, parts(own, stages)) if stages else made
    with mock.patch.object(simulating, "_REVIEW_TICKS", TICKS_PER_S // 50):
        run, again, unfolded = (simulate(made, workload, folds=folds) for folds in (True, True, False))
        named = simulate(made, workload, counts=False)
    assert happened(run) == happened(again) == happened(unfolded)
    if all(len(chain.groups) == 1 for chain in own.chains):
        assert happened(run) == happened(named)
    assert [item.number for item in run.served] == list(range(len(workload.arrivals)))
    gone = {item.instance for item in out if item.is_failure}
    alone = simulate(fleet(own), workload)
    for item, expected in zip(run.served, alone.served, strict=True):
        if item.refusal is None:
            assert item.tokens == expected.tokens
            assert run.arrived[item.number] <= item.first <= item.end
        elif item.refusal == LOST:
            assert {own.instance for own in out} >= gone
    moved = Counter(item.number for item in run.hand_overs if item.why == "load")
    assert all(count == 1 for count in moved.values())  # nothing goes to and fro
    for item in run.hand_overs:
        assert item.source != item.target
        assert item.left <= item.there
        assert not item.nbytes or item.verdict == "transfer"
        assert item.why != "failure" or item.source in gone
    assert sum(run.sent_bytes) >= sum(item.nbytes for item in run.hand_overs)
    if link is None:
        assert not any(run.sent_bytes)


def uneven() -> Workload:
    """By turns a long answer and a short one, so that all long ones are on one instance."""
    return Workload(
        arrivals=tuple(
            Arrival(at_s=0.001 * i, app=0, prompt_tokens=20, output_tokens=(900, 20)[i % 2]) for i in range(12)
        ),
        source="uneven",
    )


def test_long_answers_spread_over_an_instance_that_became_idle() -> None:
    own = limits(pages=(900, 900), max_rows=8)
    own = replace(own, chains=tuple(replace(chain, max_model_len=4096) for chain in own.chains))
    with_, without = (simulate(copies(own, 2, FAST, moves=moves), uneven()) for moves in (True, False))
    assert not without.hand_overs
    assert {item.why for item in with_.hand_overs} == {"load"}
    assert max(item.end for item in with_.served) < max(item.end for item in without.served)
    told = report(with_, {})
    assert told.total.moved == told.apps[0].moved == len(with_.hand_overs)
    assert told.total.sent_bytes == told.moved_bytes == sum(item.nbytes for item in with_.hand_overs) > 0
    events = [event for event in chrome_trace(with_) if event.get("cat") == "hand-over"]
    assert len(events) == 2 * len(with_.hand_overs)
    assert json.loads(json.dumps(events)) == events


@pytest.mark.parametrize(("is_failure", "link", "verdict"), [
    (False, FAST, "transfer"), (False, None, "recompute"), (True, FAST, "fresh"),
])  # fmt: skip
def test_who_is_on_an_instance_that_goes_out_goes_on_elsewhere(is_failure, link, verdict) -> None:
    own = limits(pages=(900, 900), max_rows=8)
    own = replace(own, chains=tuple(replace(chain, max_model_len=4096) for chain in own.chains))
    out = Outage(at_s=0.5, instance=0, is_failure=is_failure)
    made = copies(own, 2, link, moves=False, outages=(out,))
    alone = replace(made.apps[1], instances=(0,), shares=(1.0,))
    made = replace(made, apps=(made.apps[0], alone, *made.apps[2:]))
    others = (
        Arrival(at_s=0.0, app=1, prompt_tokens=20, output_tokens=900),
        Arrival(at_s=0.6, app=1, prompt_tokens=20, output_tokens=2),
    )
    run = simulate(made, Workload(arrivals=(*uneven().arrivals, *others), source="out"))
    moved = {item.number for item in run.hand_overs}
    assert moved
    assert {(item.source, item.target) for item in run.hand_overs} == {(0, 1)}
    assert {item.verdict for item in run.hand_overs} - {"fresh"} == {verdict} - {"fresh"}  # of those that had begun
    for item in run.served[:12]:
        assert item.tokens == (900, 20)[item.number % 2]
        assert item.number in moved or run.placed[item.number] == 1 or item.end <= ticks(0.5)
    refused = [item.number for item in run.served if item.refusal is not None]
    assert refused == ([12, 13] if is_failure else [])  # no other instance runs their model


def test_an_outage_is_written_with_a_device() -> None:
    names = ("n/a+n/b", "n/c")
    assert outage_of(names, "n/b@1.5", is_failure=True) == Outage(at_s=1.5, instance=0, is_failure=True)
    assert "no instance has" in str(outage_of(names, "n/d@1", is_failure=False))
    assert "no number" in str(outage_of(names, "n/c@nan", is_failure=False))


def test_ways_through_several_instances_are_refused() -> None:
    plan, diags = fleet_plan(), Diagnostics()
    rates_of(plan, diags=diags)
    assert not diags.has_errors
    route = RouteEntry(chain=0, alternatives=((0, 1),))
    rates_of(plan.model_copy(update={"routes": (route, *plan.routes[1:])}), diags=diags)
    assert [item.code.id for item in diags] == ["BC508"]
