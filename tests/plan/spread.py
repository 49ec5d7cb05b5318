"""Random plans of several devices, without a compiler: graphs of synthetic blocks, spread by chance."""

from __future__ import annotations

import random

from blockc.ir.layout import ResidentTensor, block_tensors
from blockc.ir.parse import parse_structure
from blockc.plan import ExecutionPlan, InstanceEntry, TurnEntry, segment_blocks, turning_tensors
from blockc.plan.verify import plan_problem
from tests.support.synthetic import chain, path, plan_of


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
