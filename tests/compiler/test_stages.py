"""Models that fit no node are divided into stages, from the spec to the simulator; all else is as before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockc.compiler import Clock, Prepared, arrange, prepare
from blockc.cost import plan_work, stage_works
from blockc.diag import DiagnosticError, Diagnostics, Severity
from blockc.diag.render import render
from blockc.plan import ExecutionPlan, dump_plan
from blockc.plan.verify import plan_problem
from blockc.render import render_plan
from blockc.render.hops import ways_of
from blockc.render.page import render_page
from blockc.simulate import fleet_of, rates_of
from blockc.simulate.simulate import simulate
from blockc.simulate.workload import Arrival, Workload
from blockc.spec import load
from blockc_runtime.capabilities import missing, refusal

MODELS = Path(__file__).parents[2] / "specs" / "models"
SPEC = """
base b : hf("{models}/llama-3-8b") {{ dtype = bf16  max_model_len = 2048 }}
finetune l : b {{ assume {{ kind = lora  rank = 16  targets = ["q_proj", "v_proj"] }} }}
cluster c {{ {network} for n in 0..1 {{ node "n${{n}}" {{
  for g in 0..{devices} {{ device "g${{g}}" : h100_80g {{ memory = {memory} }} }}
}} }} }}
tenant t {{ app a {{ model = b {traffic} }} app l {{ model = l }} }}
policy {{ {policy} }}
"""
LINKED = "network { inter_node = 100Gbps }"


_PREPARED: list[Prepared] = []  # models are traced once


def compiled(
    folder: Path, *, diags: Diagnostics | None = None, before: ExecutionPlan | None = None, **changed: str
) -> ExecutionPlan:
    values = {"memory": "11GiB", "devices": "0", "network": LINKED, "traffic": "", "policy": ""} | changed
    spec = folder / "fleet.blk"
    spec.write_text(SPEC.format(models=MODELS, **values))
    deployment = load(spec, variables={}, environ={}).require()
    if not _PREPARED:
        _PREPARED.append(prepare(deployment, zoo=None, target="sim", clock=Clock(Diagnostics())))
    clock = Clock(Diagnostics() if diags is None else diags)
    return arrange(_PREPARED[0], deployment, clock=clock, before=before).plan


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> ExecutionPlan:
    traffic = "traffic { rate = 1rps  prompt = 256tok  output = 64tok }  slo { tpot_p95 = 80ms }"
    return compiled(tmp_path_factory.mktemp("stages"), traffic=traffic)


def test_what_fits_no_node_runs_in_stages_on_several(plan: ExecutionPlan) -> None:
    (instance,) = plan.instances
    assert [stage.devices for stage in instance.stages] == [(0,), (1,)]
    assert instance.chains == (0, 1)
    path = plan.paths[plan.chains[0].path]
    assert sum(stage.count for stage in instance.stages) == len(path.blocks)
    assert plan.solver.value == plan.solver.bound == 2
    assert plan_problem(plan) is None
    assert instance.load is not None
    route = plan.routes[next(app.chain for app in plan.apps if app.model == "b")]
    assert 2 * (instance.load.cadence_s or 1) < route.tpot_s == pytest.approx(0.08)
    held = [entry.weights_bytes for entry in plan.memory]
    assert min(held) > 0.4 * sum(held)


def test_parts_add_up_to_the_whole(plan: ExecutionPlan) -> None:
    whole = plan_work(plan)
    parts = stage_works(plan, [(stage.first, stage.count) for stage in plan.instances[0].stages])
    for name in ("blocks", "read_bytes", "row_read_bytes", "token_flops", "row_flops", "reduce_bytes"):
        for segment in range(len(plan.segments)):
            assert sum(getattr(p.segments[segment], name) for p in parts) == getattr(whole.segments[segment], name)
    for chain, own in enumerate(whole.chains):
        assert sum(p.chains[chain].side_bytes for p in parts) == own.side_bytes
        assert sum(p.chains[chain].attention[0].token_bytes for p in parts) == own.attention[0].token_bytes


def test_stages_are_shown_simulated_and_not_served(plan: ExecutionPlan) -> None:
    text = render_plan(plan)
    assert "stage 0 of 2: blocks 0 to " in text
    assert "between stages, 8.0 KiB a token" in render_page(plan).html
    way = ways_of(plan).by_chain[0]
    assert [hop.devices for hop in way.hops] == [(0,), (1,)]
    assert way.sent_bytes == 8192
    assert way.travel.prompt_s > way.travel.token_s > 20e-6
    fleet = fleet_of(plan, rates_of(plan, diags=Diagnostics()))
    arrivals = tuple(Arrival(at_s=0.2 * i, app=i % 2, prompt_tokens=100, output_tokens=20) for i in range(30))
    run = simulate(fleet, Workload(arrivals=arrivals, source="even"))
    assert [item.tokens for item in run.served] == [20] * 30
    assert run.instances[0].hop_bytes == 8192 * run.instances[0].totals.tokens
    assert "devices:2" in missing(plan)
    assert "devices:2, weights:assumed (an instance on several devices, a cell or a pipeline, is" in refusal(
        missing(plan)
    )


def test_a_node_that_holds_a_model_is_not_divided(tmp_path: Path) -> None:
    auto, off = compiled(tmp_path, devices="1"), compiled(tmp_path, devices="1", policy="pipeline = off")
    assert not auto.instances[0].stages
    assert len(auto.instances[0].devices) == 2
    assert [i.model_dump() for i in auto.instances] == [i.model_dump() for i in off.instances]
    asked = compiled(tmp_path, devices="1", policy="pipeline = stages(count = 2)")
    assert [stage.devices for stage in asked.instances[0].stages] == [(0,), (1,)]
    assert plan_problem(asked) is None


@pytest.mark.parametrize("traffic", ["", "traffic { rate = 1rps  prompt = 256tok  output = 64tok }"])
def test_copies_go_to_as_many_nodes_as_are_asked_for(tmp_path: Path, traffic: str) -> None:
    where = f"{traffic}  replicas = 2  spread = node"
    plan = compiled(tmp_path, devices="3", traffic=where, policy="pipeline = stages(count = 2)")
    assert [[stage.devices for stage in own.stages] for own in plan.instances] == [[(0,), (1,)], [(4,), (5,)]]


@pytest.mark.parametrize(
    ("code", "words", "changed"),
    [
        ("BC402", "would fit in stages on several nodes, and nothing is known to travel", {"network": ""}),
        ("BC401", "needs 15.7 GiB on one device", {"policy": "pipeline = off"}),
        ("BC401", "the largest offers 6.0 GiB", {"memory": "6GiB"}),
        ("BC402", "cannot be divided into 5 stages on 2 devices", {"policy": "pipeline = stages(count = 5)"}),
        ("BC501", "cannot keep pace in stages", {"traffic": "traffic { rate = 1rps } slo { tpot_p95 = 3ms }"}),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, code: str, words: str, changed: dict[str, str]) -> None:
    with pytest.raises(DiagnosticError) as caught:
        compiled(tmp_path, **changed)
    found = [(item.code.id, item.message) for item in caught.value.diagnostics if item.severity is Severity.ERROR]
    assert [name for name, _ in found] == [code]
    assert words in found[0][1]


def test_what_has_no_effect_beside_a_pipeline_is_said(tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    diags = Diagnostics()
    policy = "residency { fine_tunes = 1GiB }"
    compiled(tmp_path, diags=diags, policy=policy)
    text = "\n".join(render(item, {}) for item in diags if item.code.id == "BC804")
    golden("place/without-effect.txt", text.replace(str(tmp_path), "."))
    diags = Diagnostics()
    compiled(tmp_path, diags=diags, policy=policy, devices="1")
    assert "BC804" not in {item.code.id for item in diags}, "nothing is divided where a node holds the model"


def test_load_that_no_pipeline_carries_is_left_out(tmp_path: Path) -> None:
    diags = Diagnostics()
    traffic = "traffic { rate = 500rps  prompt = 256tok  output = 64tok }  slo { tpot_p95 = 80ms }  priority = 3"
    plan = compiled(tmp_path, diags=diags, traffic=traffic, policy="overload = shed")
    assert [item.code.id for item in diags if item.code.id not in ("BC403", "BC406")] == ["BC405"]
    assert [0 < app.served < 1 for app in plan.apps] == [True, False]
    assert plan.instances[0].stages
    with pytest.raises(DiagnosticError, match="BC501"):
        compiled(tmp_path, traffic=traffic)


def test_a_plan_that_follows_has_its_stages_where_they_were(plan: ExecutionPlan, tmp_path: Path) -> None:
    traffic = "traffic { rate = 1rps  prompt = 256tok  output = 64tok }  slo { tpot_p95 = 80ms }"
    again = compiled(tmp_path, traffic=traffic, before=plan)
    assert again.instances == plan.instances
    assert again.solver.moved_bytes == 0
    larger = compiled(tmp_path, traffic=traffic, before=plan, devices="1", memory="12GiB")
    assert not larger.instances[0].stages, "a node holds it now"
    assert larger.solver.moved_bytes == sum(entry.weights_bytes + entry.sides_bytes for entry in larger.memory)
    back = compiled(tmp_path, traffic=traffic, before=larger)
    assert 0 < (back.solver.moved_bytes or 0) <= sum(entry.weights_bytes + entry.sides_bytes for entry in back.memory)


CONTRADICTIONS: list[tuple[str, Any]] = [
    ("stages on other devices", lambda i: i["stages"].reverse()),
    ("stages of several widths", lambda i: (i.update(devices=[1]), i["stages"][0].update(devices=[]))),
    ("do not follow one another", lambda i: i["stages"][1].update(first=i["stages"][1]["first"] + 1)),
    ("its chains have", lambda i: i["stages"][1].update(count=i["stages"][1]["count"] - 1)),
    ("something of it takes turns", lambda i: i.update(side_slots={"0": 1})),
    ("counts", lambda i: (i["stages"][0].update(count=2), i["stages"][1].update(first=2, count=64))),
]


@pytest.mark.parametrize(("words", "change"), CONTRADICTIONS, ids=[words for words, _ in CONTRADICTIONS])
def test_broken_stages_are_refused(plan: ExecutionPlan, words: str, change: Any) -> None:
    content = json.loads(dump_plan(plan))["plan"]
    change(content["instances"][0])
    assert words in str(plan_problem(ExecutionPlan.model_validate(content)))


def test_stages_on_nodes_without_a_link_are_refused(plan: ExecutionPlan) -> None:
    assert "no link joins nodes" in str(plan_problem(plan.model_copy(update={"links": ()})))
