"""Binding lines of a plan: what is tight, by how much, and in which order."""

from __future__ import annotations

from blockc.plan import ExecutionPlan, LoadEntry, RouteEntry, RuleEntry
from blockc.render.binding import bounds_of
from blockc.render.page import render_page
from tests.plan.fleet import fleet_plan

APPS = [("acme", "chat", 0), ("acme", "draft", 2), ("zoo", "law", 1)]
EVIL = "<script>alert(1)</script> on n0/d0"


def loaded(*, traffic: float = 0.2, sweeps: float = 0.3, limit: float = 0.8, **apps: float) -> ExecutionPlan:
    """A plan of which all chains run in the first instance, under load."""
    plan = fleet_plan(apps=APPS)
    load = LoadEntry(cadence_s=0.04, traffic=traffic, sweeps=sweeps, limit=limit, rows=3.0, batches={})
    first = plan.instances[0].model_copy(update={"load": load})
    routes = tuple(
        RouteEntry(chain=route.chain, alternatives=route.alternatives, ttft_s=0.4, tpot_s=0.02) for route in plan.routes
    )
    targets = {"ttft_s": 0.5, "tpot_s": 0.05, **apps}
    served = (plan.apps[0].model_copy(update=targets), *plan.apps[1:])
    return plan.model_copy(update={"instances": (first, *plan.instances[1:]), "routes": routes, "apps": served})


def test_each_line_says_what_is_left():
    found = {bound.kind: bound for bound in bounds_of(loaded())}
    assert (found["time"].has, found["time"].limit) == ("busy 50% (30% of it sweeps of weights)", "80%")
    assert abs(found["time"].share - 0.5 / 0.8) < 1e-9
    assert (found["cadence"].has, found["cadence"].limit, found["cadence"].left) == ("every 40 ms", "50 ms", "10 ms")
    assert found["cadence"].line.endswith("by acme/chat")
    slo = {bound.line: bound for bound in bounds_of(loaded()) if bound.kind == "slo"}
    assert {line: bound.left for line, bound in slo.items()} == {
        "ttft of acme/chat": "100 ms",
        "tpot of acme/chat": "30 ms",
    }
    assert 0 < found["memory"].share < 1


def test_the_tightest_comes_first():
    for plan, kind in (
        (loaded(traffic=0.49), "time"),
        (loaded(ttft_s=0.401), "slo"),
        (loaded(tpot_s=0.0401), "cadence"),
    ):
        first, *others = bounds_of(plan)
        assert first.kind == kind
        assert first.is_tight
        shares = [bound.share for bound in others if bound.share is not None]
        assert shares == sorted(shares, reverse=True)


def test_rules_stand_among_them():
    plan = loaded()
    chains = plan.instances[0].chains
    rules = (
        RuleEntry(kind="pin", text=EVIL, chains=chains[:1], devices=(0,)),
        RuleEntry(kind="apart", text="a apart from b", chains=chains[:2]),
        RuleEntry(kind="alone", text="tenant zoo on devices of its own", chains=chains),
        RuleEntry(kind="replicas", text="acme/chat in 1 instances", chains=chains[:1]),
    )
    plan = plan.model_copy(update={"rules": rules})
    found = {bound.kind: bound for bound in bounds_of(plan)}
    assert (found["replicas"].has, found["replicas"].left, found["replicas"].share) == ("1 instances", "0", 1.0)
    assert found["replicas"].is_tight
    assert found["apart"].share is None
    assert bounds_of(plan)[-1].kind == "apart", "without an amount: behind the others"
    assert found["pin"].share == max(found["time"].share, found["memory"].share)
    html = render_page(plan).html
    assert EVIL not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; on n0/d0" in html


def test_without_loads_or_rules_memory_is_what_there_is():
    assert {bound.kind for bound in bounds_of(fleet_plan(apps=APPS))} == {"memory"}
