"""Every part of a plan is a plan: of compiled deployments, and of random graphs on random devices."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from blockc.cli.compile import compile_file
from blockc.cost import DeviceRates, with_prices
from blockc.explain import explain_why
from blockc.plan import (
    ExecutionPlan,
    dump_plan,
    part_of_node,
    parts_of,
    read_plan,
    segment_blocks,
    turning_tensors,
)
from blockc.plan.verify import plan_problem
from blockc.render.page import render_page
from blockc_runtime.kv.index import KvIndex
from blockc_runtime.limits import engine_limits
from blockc_runtime.router import router_of
from tests.plan.fleet import fleet_plan
from tests.plan.spread import random_graph, spread, tensor_bytes

RATES = DeviceRates(flops_per_s=1e12, bytes_per_s=1e11)
CONFIG = """{
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 128, "max_position_embeddings": 512
}"""
SPEC = """
base b : hf("./tiny") { dtype = fp32  max_model_len = 128 }
finetune one  : b { assume { kind = lora  rank = 4  targets = ["q_proj", "v_proj"] } }
finetune two  : b { assume { kind = lora  rank = 4  targets = ["q_proj", "v_proj"] } }
finetune top  : b { assume { kind = full  changed_layers = 2..3 }  residency = cold }
finetune deep : top { assume { kind = full  changed_layers = 3..3 } }
cluster box { for n in 0..1 { node "n${n}" { for d in 0..1 { device "d${d}" : cpu { memory = 64MiB } } } } }
tenant acme { weight = 2
  app hot { model = one  replicas = 2  spread = node  traffic { rate = 1rps } }
  app base { model = b  priority = 1 }
}
tenant zoo {
  app top { model = top  pin = "n0/d1" }
  app deep { model = deep  apart_from = ["zoo/top"] }
  app two { model = two }
}
policy { residency { blocks = 400KiB } }
"""


def bound(plan: ExecutionPlan) -> set[str]:
    return {ref.digest for block in plan.blocks.values() for ref in block.tensors.values()}


def check_parts(plan: ExecutionPlan) -> None:
    """What holds of the parts of any plan."""
    parts = parts_of(plan)
    assert [part.instance for part in parts] == list(range(len(plan.instances)))
    assert set().union(*(bound(part.plan) for part in parts)) == bound(plan)
    for part in parts:
        whole, own = plan.instances[part.instance], part.plan
        assert plan_problem(own) is None
        assert read_plan(dump_plan(own), "part") == own
        assert list(part.chains) == sorted(whole.chains)
        assert own.devices == (plan.devices[part.device],)
        assert [own.kv_groups[place] for place in range(len(part.groups))] == [plan.kv_groups[g] for g in part.groups]
        assert {part.groups[group]: pages for group, pages in own.instances[0].kv_pages.items()} == whole.kv_pages
        for number, place in part.chains.items():
            before, after = plan.chains[number], own.chains[place]
            assert after.digest == before.digest
            assert own.paths[after.path] == plan.paths[before.path]
            assert [(part.groups[kv.group], kv.domain) for kv in after.kv] == [
                (kv.group, kv.domain) for kv in before.kv
            ]
            runs = [[segment_blocks(of, s) for s in c.segments] for of, c in ((plan, before), (own, after))]
            assert runs[0] == runs[1]
        for number, place in part.apps.items():
            assert own.apps[place].address == plan.apps[number].address
            assert part.chains[plan.apps[number].chain] == own.apps[place].chain
        assert {plan.apps[number].chain for number in part.apps} == set(part.chains) & {a.chain for a in plan.apps}
        (entry,), (instance,) = own.memory, own.instances
        assert entry.used_bytes == next(e for e in plan.memory if e.device == part.device).used_bytes
        taking = turning_tensors(own)
        assert {turn.segment: turn.nbytes for turn in instance.turns} == {
            segment: tensor_bytes(own, segment, digests) for segment, digests in taking.items()
        }
        limits = engine_limits(own)
        KvIndex(limits).check_integrity()
        assert [item.domains for item in limits.chains] == [tuple(kv.domain for kv in c.kv) for c in own.chains]


@pytest.mark.parametrize("seed", range(40))
def test_parts_of_random_plans_are_plans(seed: int) -> None:
    rng = random.Random(seed)
    check_parts(spread(random_graph(rng), rng))


def on_nodes(plan: ExecutionPlan, count: int) -> ExecutionPlan:
    """The same on so many nodes, in turns."""
    devices = tuple(
        device.model_copy(update={"node": f"n{index % count}", "address": f"n{index % count}/d{index}"})
        for index, device in enumerate(plan.devices)
    )
    return plan.model_copy(update={"devices": devices, "nodes": tuple(f"n{number}" for number in range(count))})


@pytest.mark.parametrize("seed", range(8))
def test_a_nodes_part_is_a_plan_whose_parts_are_the_whole_ones(seed: int) -> None:
    rng = random.Random(seed)
    plan = on_nodes(with_prices(spread(random_graph(rng), rng), lambda kind, width: RATES), 2)
    for node in sorted({plan.devices[own.devices[0]].node for own in plan.instances}):
        own = part_of_node(plan, node)
        assert plan_problem(own) is None
        assert read_plan(dump_plan(own), "part") == own
        assert router_of(own) is not None or all(len(route.alternatives) == 1 for route in own.routes)
        if own is not plan:
            assert [device.address for device in own.devices] == [
                device.address for device in plan.devices if device.node == node
            ]
            whole = [part.plan for part in parts_of(plan) if plan.devices[part.device].node == node]
            # Which of its chains' paths a segment is shown on is all that may differ.
            assert [apart(part.plan) for part in parts_of(own)] == [apart(part) for part in whole]


def apart(plan: ExecutionPlan) -> ExecutionPlan:
    segments = tuple(entry.model_copy(update={"path": "", "first": 0}) for entry in plan.segments)
    instances = tuple(own.model_copy(update={"prices": None}) for own in plan.instances)
    return plan.model_copy(update={"segments": segments, "instances": instances})


def test_a_node_without_instances_has_no_part() -> None:
    plan = fleet_plan(devices=2)
    assert part_of_node(plan, plan.devices[0].node) is plan
    with pytest.raises(ValueError, match="no instance"):
        part_of_node(plan, "elsewhere")


def test_parts_of_adapters_on_several_devices() -> None:
    plan = fleet_plan(adapters=20, devices=6, memory_bytes=1300 << 10)
    assert len(plan.instances) > 1
    check_parts(plan)


def test_what_is_shared_elsewhere_only_takes_turns_here_and_no_more_memory() -> None:
    """Seeds above have such tensors, or the rule would not be tried."""
    rng = random.Random(5)
    grown = 0
    for _ in range(10):
        plan = spread(random_graph(rng), rng)
        for part in parts_of(plan):
            before, after = plan.instances[part.instance].room_bytes, part.plan.instances[0].room_bytes
            assert after >= before
            grown += after > before
    assert grown


def test_replicas_are_parts_that_an_engine_takes(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(CONFIG)
    (tmp_path / "fleet.blk").write_text(SPEC)
    plan = compile_file(tmp_path / "fleet.blk", tmp_path / "zoo", {}, target="sim")[0].plan
    assert any(instance.turns for instance in plan.instances)
    assert all(instance.prices is not None for instance in plan.instances)
    check_parts(plan)
    hot = next(number for number, app in enumerate(plan.apps) if app.app == "hot")
    homes = [part for part in parts_of(plan) if hot in part.apps]
    assert len(homes) == len(plan.routes[plan.apps[hot].chain].alternatives) == 2
    one, other = (part.plan.chains[part.chains[plan.apps[hot].chain]] for part in homes)
    assert one.digest == other.digest


def test_of_a_cut_whose_chains_are_elsewhere_that_is_said() -> None:
    part = parts_of(fleet_plan(adapters=20, devices=6, memory_bytes=1300 << 10))[0].plan
    assert part.segments[0].cut.kind == "elsewhere"
    assert "chains elsewhere part or join here" in render_page(part).html
    why = explain_why(part, 0, 0, sides=None)
    assert why.ends.reason == "chains elsewhere part or join here"


def test_a_plan_of_one_instance_is_its_own_part() -> None:
    plan = fleet_plan(devices=2)
    (part,) = parts_of(plan)
    assert part.plan is plan
    assert part.chains == {number: number for number in range(len(plan.chains))}
    assert part.apps == {number: number for number in range(len(plan.apps))}


def test_instances_without_a_device_by_themselves_have_no_parts() -> None:
    plan = fleet_plan(devices=2)
    (instance,) = plan.instances
    with pytest.raises(ValueError, match="instance 0"):
        parts_of(plan.model_copy(update={"instances": (instance.model_copy(update={"devices": (0, 1)}),)}))
    with pytest.raises(ValueError, match="instance 0"):
        parts_of(plan.model_copy(update={"instances": (instance, instance)}))
