"""Specs whose traffic decides: plans without weights, from the spec to the simulator, and plans that follow others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from blockc.cli.compile import compile_file
from blockc.cost import plan_work
from blockc.diag import DiagnosticError, Diagnostics
from blockc.plan import ExecutionPlan, dump_plan, load_plan, write_plan
from blockc.plan.verify import plan_problem
from blockc.render import render_plan
from blockc.render.page import render_page
from blockc.simulate import fleet_of, rates_of
from blockc_runtime.router import Link

MODELS = Path(__file__).parents[2] / "specs" / "models"
SPEC = """
base b : hf("{models}/llama-3-8b") {{ dtype = bf16  max_model_len = 4096 }}
for i in 0..3 {{ finetune "l${{i}}" : b {{ assume {{ kind = lora  rank = 16  targets = ["q_proj", "v_proj"] }} }} }}
finetune top : b {{ assume {{ kind = full  changed_layers = 28..31 }} }}
cluster c {{ {network}
  for n in 0..1 {{ node "n${{n}}" {{ for g in 0..3 {{ device "g${{g}}" : h100_80g {{ reserve = 6% }} }} }} }}
}}
for i in 0..3 {{ tenant "t${{i}}" {{ app chat {{
  model = "l${{i}}"  traffic {{ rate = {rate}rps  prompt = 512tok  output = 128tok }}  slo {{ tpot_p95 = 50ms }}
}} }} }}
tenant u {{ {isolation} app chat {{ model = top  {extra}  traffic {{ rate = 1rps }} }} }}
policy {{ {policy} }}
"""


def compiled(
    folder: Path, *, rate: float = 1, extra: str = "", isolation: str = "", policy: str = "", network: str = "",
    before: Path | None = None,
) -> ExecutionPlan:  # fmt: skip
    spec = folder / "fleet.blk"
    values = {"rate": rate, "extra": extra, "isolation": isolation, "policy": policy, "network": network}
    spec.write_text(SPEC.format(models=MODELS, **values))
    return compile_file(spec, folder / "zoo", {}, target="sim", before=before)[0].plan


def devices_of(plan: ExecutionPlan) -> set[str]:
    return {plan.devices[device].address for instance in plan.instances for device in instance.devices}


def test_traffic_decides_how_many_devices(tmp_path: Path) -> None:
    calm, busy = compiled(tmp_path), compiled(tmp_path, rate=10)
    assert len(devices_of(calm)) == calm.solver.value == 1
    assert len(devices_of(busy)) == busy.solver.value > 1
    assert busy.solver.bound <= busy.solver.value
    assert busy.solver.bound_kind in ("closed form", "counts", "flat")
    assert [step.bound for step in busy.solver.history] == sorted(step.bound for step in busy.solver.history)
    assert plan_problem(busy) is None
    fleet = fleet_of(busy, rates_of(busy, diags=Diagnostics()))
    assert fleet.devices == busy.solver.value
    path = tmp_path / "plan.json"
    write_plan(busy, path)
    assert dump_plan(load_plan(path)) == dump_plan(busy)
    assert dump_plan(compiled(tmp_path, rate=10)) == dump_plan(busy)


def test_a_graph_has_the_work_of_its_plan(tmp_path: Path) -> None:
    plan = compiled(tmp_path)
    found = {}
    spec = tmp_path / "fleet.blk"
    again = compile_file(
        spec, tmp_path / "zoo", {}, target="sim", on_result=lambda name, result: found.setdefault(name, result)
    )[0].plan
    problem, _ = found["place"]
    assert again == plan
    work = plan_work(plan)
    assert problem.work.segments == work.segments
    assert [replace(chain, side_bytes=0, side_token_flops=0) for chain in problem.work.chains] == [
        replace(chain, side_bytes=0, side_token_flops=0) for chain in work.chains
    ]
    # A plan divides the sum of sides by rank: all of these have the same.
    assert problem.work.chains == work.chains


def test_rules_of_the_spec(tmp_path: Path) -> None:
    pinned = compiled(tmp_path, extra='pin = "n1/g2"')
    chain = next(app.chain for app in pinned.apps if app.tenant == "u")
    (instance,) = (item for item in pinned.instances if chain in item.chains)
    assert [pinned.devices[device].address for device in instance.devices] == ["n1/g2"]
    for options in ({"isolation": "isolation = devices"}, {"extra": 'apart_from = ["t0/chat"]'}):
        plan = compiled(tmp_path, **options)
        chain = next(app.chain for app in plan.apps if app.tenant == "u")
        other = next(app.chain for app in plan.apps if app.tenant == "t0")
        assert plan.solver.value == 2
        assert not any({chain, other} <= set(item.chains) for item in plan.instances)


def test_headroom_and_links(tmp_path: Path) -> None:
    plan = compiled(tmp_path, policy="solver { headroom = 30% }")
    (load,) = (instance.load for instance in plan.instances)
    assert load is not None
    assert load.limit == pytest.approx(0.8 * 0.7)
    for entry in plan.memory:
        assert entry.used_bytes - entry.reserve_bytes <= 0.7 * (entry.capacity_bytes - entry.reserve_bytes)
    slow = compiled(tmp_path, rate=6, network="network { intra_node = 1GB/s }")
    assert all(len(instance.devices) == 1 for instance in slow.instances)


def test_a_clusters_links_are_the_plans_and_the_simulators(tmp_path: Path) -> None:
    said = "network { intra_node = 2GB/s  inter_node = 100Gbps  latency = 30us }"
    plan = compiled(tmp_path, rate=12, network=said)
    within, between = plan.links
    assert (within.bytes_per_s, between.bytes_per_s, between.latency_s) == (2 * 10**9, 12_500_000_000, 30e-6)
    node = [device.node for device in plan.devices]
    assert node[within.source] == node[within.target]
    assert node[between.source] != node[between.target]
    assert plan_problem(plan) is None
    network = fleet_of(plan, rates_of(plan, diags=Diagnostics())).network
    assert network.within == Link(bytes_per_s=2e9, latency_s=within.latency_s)
    assert network.between == Link(bytes_per_s=12.5e9, latency_s=30e-6)


def test_what_comes_first_decides_and_the_price_is_said(tmp_path: Path) -> None:
    text = SPEC.replace("{{ reserve = 6% }}", "{{ reserve = 6%  price = 1800 / (720 * 1h) }}")
    spec = tmp_path / "priced.blk"
    values = {"rate": 12, "extra": "", "isolation": "", "network": "", "models": MODELS}
    spec.write_text(text.format(policy="solver { objective = [slo, cost] }", **values))
    plan = compile_file(spec, tmp_path / "zoo", {}, target="sim")[0].plan
    used = len(devices_of(plan))
    assert plan.price is not None
    assert plan.price.per_hour == plan.solver.value == 2.5 * used
    assert plan.solver.objective == ("cost", "peak_load")
    assert plan_problem(plan) is None
    assert plan.price.pm is not None
    assert plan.price.pm.found is not None
    assert plan.price.pm.found >= plan.price.per_hour
    said = f"{2.5 * used:g} an hour; every model by itself {plan.price.pm.found:.6g}"
    assert f"price: {said}" in render_plan(plan)
    assert said in render_page(plan).html
    wrong = plan.solver.model_copy(update={"values": (1.0, 0.5)})
    assert plan_problem(plan.model_copy(update={"solver": wrong})) is not None


def test_load_that_does_not_fit_is_left_out_by_priority(tmp_path: Path) -> None:
    plan = compiled(tmp_path, rate=90, extra="priority = 7", policy="overload = shed")
    apps = {app.address: app for app in plan.apps}
    assert (apps["u/chat"].priority, apps["u/chat"].served) == (7, 0.0)
    shares = {apps[f"t{number}/chat"].served for number in range(4)}
    assert len(shares) == 1
    assert 0 < shares.pop() < 1
    assert plan_problem(plan) is None
    assert "a place for 0% of its load" in render_plan(plan)
    more = plan.apps[0].model_copy(update={"served": 1.5})
    assert plan_problem(plan.model_copy(update={"apps": (more, *plan.apps[1:])})) is not None


def test_a_model_in_several_places(tmp_path: Path) -> None:
    plan = compiled(tmp_path, extra="replicas = 2  spread = node")
    chain = next(app.chain for app in plan.apps if app.tenant == "u")
    places = [plan.instances[way[0]].devices[0] for way in plan.routes[chain].alternatives]
    assert {plan.devices[device].node for device in places} == {"n0", "n1"}
    assert plan.solver.value == 2
    with pytest.raises(DiagnosticError) as caught:
        compiled(tmp_path, extra="replicas = 3  spread = node")
    (item,) = [item for item in caught.value.diagnostics if item.code.id == "BC402"]
    assert item.primary is not None
    assert item.primary.text == "u/chat on 3 nodes"


def test_what_the_devices_cannot_carry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DiagnosticError) as caught:
        compiled(tmp_path, rate=400)
    (item,) = [item for item in caught.value.diagnostics if item.code.id == "BC402"]
    assert item.help is not None
    assert "every `rate`" in item.help


@pytest.mark.parametrize(
    ("rate", "extra", "policy", "line", "at"),
    [
        (1, 'pin = "n0/g0"  replicas = 2', "", "u/chat on n0/g0", '"n0/g0"'),
        (44, "", "batching { max_num_seqs = 2 }", "at most 2 requests in a step", "2 } }"),
    ],
)
def test_lines_that_cannot_hold_are_named_where_they_stand(
    tmp_path: Path, rate: float, extra: str, policy: str, line: str, at: str
) -> None:
    """Without them the spec can be placed."""
    with pytest.raises(DiagnosticError) as caught:
        compiled(tmp_path, rate=rate, extra=extra, policy=policy)
    (item,) = [item for item in caught.value.diagnostics if item.code.id == "BC402"]
    (span,) = [label.span for label in (item.primary, *item.secondary) if label is not None and label.text == line]
    written = (tmp_path / "fleet.blk").read_text().splitlines()[span.start_line - 1][span.start_column - 1 :]
    assert written.startswith(at)


def test_a_plan_that_follows_moves_no_more_than_it_may(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    write_plan(compiled(tmp_path, rate=12), path)
    again = compiled(tmp_path, rate=12, before=path)
    assert again.solver.moved_bytes == 0
    assert devices_of(again) == devices_of(load_plan(path))
    more = compiled(tmp_path, rate=16, before=path, policy="replan { move_budget = 1GB }")
    assert more.solver.moved_bytes is not None
    assert plan_problem(more) is None
