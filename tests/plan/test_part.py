"""Every part of a plan is a plan: of compiled deployments, and of random graphs on random devices."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from blockc.cli.compile import compile_file
from blockc.ir.layout import ResidentTensor, block_tensors
from blockc.ir.parse import parse_structure
from blockc.plan import (
    ExecutionPlan,
    InstanceEntry,
    TurnEntry,
    dump_plan,
    parts_of,
    read_plan,
    segment_blocks,
    turning_tensors,
)
from blockc.plan.verify import plan_problem
from blockc_runtime.kv.index import KvIndex
from blockc_runtime.limits import engine_limits
from tests.plan.fleet import fleet_plan
from tests.support.synthetic import chain, path, plan_of

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


def random_graph(rng: random.Random) -> ExecutionPlan:
    """Chains that part, join and cross, some with the same blocks under another layout of caches."""
    models = {}
    for number in range(rng.randint(2, 6)):
        owners = [rng.choice(["base", "base", "left", "right"]) for _ in range(3)]
        models[f"m{number}"] = chain(
            path(
                lambda name, owners=owners: owners[int(name.split(".")[2])] if ".layers." in name else "base",
                layers=rng.choice([2, 3]),
                window=rng.choice([None, None, 64]),
            )
        )
    apps = {"acme": {name: name for name in models}, "zoo": {"other": "m0"}}
    parents = {name: None if name == "m0" else "m0" for name in models}
    return plan_of(models, parents=parents, apps=apps)


def spread(plan: ExecutionPlan, rng: random.Random) -> ExecutionPlan:
    """The same plan with its chains on several devices, some on more than one, and some segments taking turns."""
    (whole,), (memory,), (device,) = plan.instances, plan.memory, plan.devices
    count = rng.randint(2, 4)
    homes = [rng.sample(range(count), rng.randint(1, count)) for _ in plan.chains]
    used = sorted({home for own in homes for home in own})
    turning = [number for number in range(len(plan.segments)) if rng.random() < 0.4]
    # Which of them are its own does not depend on who else takes turns.
    probe = whole.model_copy(update={"turns": tuple(TurnEntry(segment=s, nbytes=0, kept="zoo") for s in turning)})
    own = turning_tensors(plan.model_copy(update={"instances": (probe,)}))
    instances: list[InstanceEntry] = []
    for place, home in enumerate(used):
        chains = tuple(number for number, where in enumerate(homes) if home in where)
        segments = sorted({segment for number in chains for segment in plan.chains[number].segments})
        groups = {kv.group for number in chains for kv in plan.chains[number].kv}
        turns = tuple(
            TurnEntry(segment=segment, nbytes=tensor_bytes(plan, segment, own[segment]), kept="zoo")
            for segment in segments
            if segment in own
        )
        instances.append(
            whole.model_copy(
                update={
                    "segments": tuple(segments), "devices": (place,), "chains": chains, "turns": turns,
                    "room_bytes": sum(turn.nbytes for turn in turns),
                    "kv_pages": {group: pages for group, pages in whole.kv_pages.items() if group in groups},
                }
            )
        )  # fmt: skip
    changed = plan.model_copy(
        update={
            "devices": tuple(device.model_copy(update={"address": f"local/d{home}"}) for home in used),
            "instances": tuple(instances),
            "routes": tuple(
                route.model_copy(update={"alternatives": tuple((used.index(home),) for home in sorted(where))})
                for route, where in zip(plan.routes, homes, strict=True)
            ),
            "memory": tuple(
                memory.model_copy(
                    update={
                        "device": place,
                        "blocks_bytes": instance.room_bytes,
                        "kv_bytes": sum(plan.kv_groups[g].page_bytes * n for g, n in instance.kv_pages.items()),
                    }
                )
                for place, instance in enumerate(instances)
            ),
        }
    )
    assert plan_problem(changed) is None
    return changed


def tensor_bytes(plan: ExecutionPlan, segment: int, digests: frozenset[str]) -> int:
    found: set[ResidentTensor] = set()
    for digest in segment_blocks(plan, segment):
        block = plan.blocks[digest]
        found |= block_tensors(parse_structure(plan.structures[block.structure]), block.tensors)
    return sum(tensor.nbytes for tensor in found if tensor.ref.digest in digests)


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
    check_parts(plan)
    hot = next(number for number, app in enumerate(plan.apps) if app.app == "hot")
    homes = [part for part in parts_of(plan) if hot in part.apps]
    assert len(homes) == len(plan.routes[plan.apps[hot].chain].alternatives) == 2
    one, other = (part.plan.chains[part.chains[plan.apps[hot].chain]] for part in homes)
    assert one.digest == other.digest


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
