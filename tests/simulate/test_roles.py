"""Instances that read prompts for others: what becomes of a request, and when it is worth it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc.cli import main
from blockc.diag import Diagnostics
from blockc.plan import ExecutionPlan, load_plan
from blockc.plan.verify import plan_problem
from blockc.render import render_plan
from blockc.simulate import fleet_of, rates_of
from blockc.simulate.baselines import LESS
from blockc.simulate.fleet import Fleet
from blockc.simulate.moves import LOST
from blockc.simulate.roles import LEAST_GAIN, with_roles
from blockc.simulate.simulate import simulate
from blockc.spec import load
from blockc.spec.deployment import Deployment
from blockc_runtime.router import Link, Network
from tests.simulate.fleets import fleet
from tests.simulate.test_folding import own_limits, workloads
from tests.simulate.test_moves import FAST, SLOW, happened, outages

CONFIG = """{
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 1024, "max_position_embeddings": 16384
}"""
SPEC = """
base tiny : hf("./tiny") { dtype = bf16 }
cluster c { node n { for g in 0..3 { device "g${g}" : l4_24g { } } } }
tenant acme { app chat {
  model = tiny  replicas = 4
  TRAFFIC
  SLO
} }
policy { solver { objective = [peak_load]  roles = auto } }
"""
TRAFFIC = "traffic { rate = 4rps  prompt = 3000tok  output = 100tok }"
TIGHT = "slo { ttft_p95 = 5s  tpot_p95 = 12ms }"


def apart(own, count: int, readers: int, link: Link | None, **changed) -> Fleet:
    """The last of ``count`` instances read for the others."""
    made = fleet(own, copies=count, network=Network(nodes=tuple(map(str, range(count))), between=link))
    answer = count - readers
    apps = tuple(
        replace(
            app, instances=app.instances[:answer], shares=app.shares[:answer], readers=app.instances[answer:],
            reader_shares=app.shares[answer:],
        )
        for app in made.apps
    )  # fmt: skip
    return replace(made, apps=apps, **changed)


@settings(max_examples=8, deadline=None)
@given(
    workload=workloads(), own=own_limits, link=st.sampled_from([FAST, SLOW, None]), readers=st.integers(1, 2),
    out=outages, moves=st.booleans(),
)  # fmt: skip
def test_whoever_is_read_apart_ends_once_with_all_its_tokens(workload, own, link, readers, out, moves) -> None:
    made = apart(own, 3, readers, link, outages=tuple(out), moves=moves)
    run, again, unfolded = (simulate(made, workload, folds=folds) for folds in (True, True, False))
    assert happened(run) == happened(again) == happened(unfolded)
    if all(len(chain.groups) == 1 for chain in own.chains):
        assert happened(run) == happened(simulate(made, workload, counts=False))
    alone = simulate(fleet(own), workload)
    sources = set(range(3 - readers, 3))
    for item, expected in zip(run.served, alone.served, strict=True):
        if item.refusal is None:
            assert item.tokens == expected.tokens
            assert run.arrived[item.number] <= item.first <= item.end
        else:
            assert item.refusal in (LOST, expected.refusal)
    for move in run.hand_overs:
        assert move.why != "read" or (move.source in sources and move.target not in sources)
    if not out and not moves:
        moved = [move.number for move in run.hand_overs]
        goes_on = [item.number for item in run.served if item.refusal is None and item.tokens > 1]
        assert sorted(moved) == goes_on  # each of them once
        assert all(run.placed[number] not in sources for number in moved)
        assert bool(any(run.sent_bytes)) <= (link is not None)


def test_without_roles_everybody_does_both() -> None:
    made = apart(None, 3, 1, FAST)
    together = LESS["no-roles"](None, made)  # type: ignore[arg-type]
    assert [app.instances for app in together.apps] == [(0, 1, 2)] * len(made.apps)
    assert not any(app.readers for app in together.apps)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ExecutionPlan:
    root = tmp_path_factory.mktemp("roles")
    spec(root)
    assert main(["compile", str(root / "fleet.blk"), "--target", "sim", "-o", str(root / "plan.json")]) <= 1
    return load_plan(root / "plan.json")


def spec(root: Path, **changed: str) -> Deployment:
    (root / "tiny").mkdir()
    (root / "tiny" / "config.json").write_text(CONFIG)
    text = SPEC
    for name, value in {"TRAFFIC": TRAFFIC, "SLO": TIGHT, **changed}.items():
        text = text.replace(name, value)
    (root / "fleet.blk").write_text(text)
    return load(root / "fleet.blk", variables={}, environ={}).require()


def plain(plan: ExecutionPlan, ways: int = 4) -> ExecutionPlan:
    """As it was placed, or with a route to fewer instances."""
    (route,) = plan.routes
    update = {"readers": (), "alternatives": route.alternatives[:ways], "weights": ()}
    requires = tuple(entry for entry in plan.requires if entry != "roles:readers")
    return plan.model_copy(update={"roles": None, "requires": requires, "routes": (route.model_copy(update=update),)})


def test_prompts_are_read_apart_where_that_keeps_more_requests_in_time(compiled: ExecutionPlan) -> None:
    assert plan_problem(compiled) is None
    (route,) = compiled.routes
    assert 0 < len(route.readers) < 4
    found = compiled.roles
    assert found is not None
    assert found.readers == route.readers
    assert "roles:readers" in compiled.requires
    assert found.apart.in_time >= found.shared.in_time + LEAST_GAIN
    assert found.apart.tpot_p95_s < found.shared.tpot_p95_s
    made = fleet_of(compiled, rates_of(compiled, diags=Diagnostics()))
    assert made.apps[0].readers == route.readers
    assert set(made.apps[0].all) == {0, 1, 2, 3}
    assert f"{found.apart.in_time:.1%} of {found.requests} requests in time" in render_plan(compiled)


def test_what_brings_nothing_is_said_and_not_done(compiled: ExecutionPlan, tmp_path: Path) -> None:
    diags = Diagnostics()
    easy = spec(tmp_path, SLO="slo { ttft_p95 = 60s  tpot_p95 = 2s }", TRAFFIC=TRAFFIC.replace("4rps", "1rps"))
    plan = with_roles(easy, plain(compiled), diags=diags)
    assert not list(diags)
    assert plan.roles is not None
    assert plan.roles.readers == plan.routes[0].readers == ()
    assert "roles:readers" not in plan.requires
    assert plan.roles.apart.in_time < plan.roles.shared.in_time + LEAST_GAIN
    assert plan_problem(plan) is None


@pytest.mark.parametrize(("changed", "ways", "why"), [
    ({"TRAFFIC": ""}, 4, "says nothing of its traffic"),
    ({"SLO": ""}, 4, "no app has a target"),
    ({}, 1, "no model runs on several cells"),
])  # fmt: skip
def test_what_cannot_be_tried_is_said(changed, ways, why, compiled: ExecutionPlan, tmp_path: Path) -> None:
    diags = Diagnostics()
    before = plain(compiled, ways)
    assert with_roles(spec(tmp_path, **changed), before, diags=diags) == before
    (said,) = diags
    assert said.code.id == "BC509"
    assert why in said.message


def test_nobody_is_asked_for_roles_that_a_spec_does_not_want(compiled: ExecutionPlan, tmp_path: Path) -> None:
    own = spec(tmp_path)
    own = replace(own, policy=replace(own.policy, roles="shared"))
    assert with_roles(own, plain(compiled), diags=Diagnostics()) == plain(compiled)


@pytest.mark.parametrize(("readers", "known", "words"), [
    ((0, 1, 2, 3), (0, 1, 2, 3), "not some of its instances"),
    ((7,), (7,), "not some of its instances"),
    ((0, 0), (0,), "not some of its instances"),
    ((0,), None, "does not say what they bring"),
    ((0,), (0, 1), "speaks of readers that no route has"),
])  # fmt: skip
def test_readers_that_a_plan_cannot_have_are_found(readers, known, words, compiled: ExecutionPlan) -> None:
    (route,) = compiled.routes
    roles = None if known is None else compiled.roles.model_copy(update={"readers": known})
    changed = {"roles": roles, "routes": (route.model_copy(update={"readers": readers}),)}
    assert words in (plan_problem(compiled.model_copy(update=changed)) or "")
