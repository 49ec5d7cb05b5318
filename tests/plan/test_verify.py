"""Every contradiction in a plan is found and said; nothing a plan can hold makes the check fail."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from blockc.plan import ExecutionPlan, dump_plan, verify_plan
from blockc.plan.verify import plan_problem
from tests.plan.fleet import digest, fleet_plan


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return json.loads(dump_plan(fleet_plan()))["plan"]


def test_the_plan_holds_together(content: dict[str, Any]) -> None:
    assert plan_problem(ExecutionPlan.model_validate(content)) is None
    assert plan_problem(fleet_plan(devices=3)) is None
    assert plan_problem(fleet_plan(adapters=20)) is None
    verify_plan(fleet_plan())


def first(table: dict[str, Any]) -> Any:
    return table[min(table)]


CONTRADICTIONS: list[tuple[str, Any]] = [
    ("another digest", lambda p: p["structures"].update({"0" * 64: first(p["structures"])})),
    (
        "not an op",
        lambda p: p["structures"].update(
            {k: v.replace("aten.add.Tensor", "os.system") for k, v in p["structures"].items()}
        ),
    ),
    ("canonical form", lambda p: p["structures"].update({k: v.rstrip("\n") for k, v in p["structures"].items()})),
    ("has no structure", lambda p: first(p["blocks"]).update(structure="f" * 64)),
    ("binds other tensors", lambda p: first(p["blocks"]).update(tensors={})),
    ("binds other tensors", lambda p: next(iter(first(p["blocks"])["tensors"].values())).update(shape=[1])),
    ("binds other scalars", lambda p: first(p["blocks"])["binds"].update(extra=1)),
    ("context", lambda p: [b.update(contexts=[5]) for b in p["blocks"].values() if b["contexts"]]),
    ("prelude", lambda p: [b.update(prelude="f" * 64) for b in p["blocks"].values()]),
    ("without a digest", lambda p: next(iter(first(p["blocks"])["tensors"].values())).update(digest="../x")),
    ("block that is not there", lambda p: first(p["paths"])["blocks"].append("f" * 64)),
    ("attention ops", lambda p: first(p["paths"])["kv_layers"].pop()),
    ("unknown dtype", lambda p: first(p["paths"]).update(dtype="F12")),
    ("hands", lambda p: first(p["paths"])["blocks"].reverse()),
    ("is no part of a path", lambda p: p["segments"][0].update(path="f" * 64)),
    ("is no part of a path", lambda p: p["segments"][0].update(first=-1)),
    ("is no part of a path", lambda p: p["segments"][0].update(count=99)),
    ("begins at KV layer", lambda p: p["segments"][1].update(first_kv_layer=0)),
    ("other chains", lambda p: p["segments"][0]["chains"].pop()),
    ("ends where its chains go on", lambda p: p["segments"][0].update(cut=p["segments"][3]["cut"])),
    ("ends where its chains go on", lambda p: p["segments"][3]["cut"].update(chains=[0, 1])),
    ("has no witnesses", lambda p: p["segments"][0]["cut"].update(chains=[0])),
    ("has no witnesses", lambda p: p["segments"][0]["cut"].update(chains=[0, 99])),
    ("are elsewhere, and named", lambda p: p["segments"][0]["cut"].update(kind="elsewhere")),
    ("do not pass it", lambda p: p["segments"][0]["cut"].update(kind="join")),
    ("do not pass it", lambda p: p["segments"][1]["cut"].update(chains=[1, 0])),
    ("differ in something else", lambda p: p["segments"][0]["cut"]["differs"].pop()),
    ("differ in something else", lambda p: p["segments"][0]["cut"].update(chains=[0, 2], differs=[])),
    ("first witness", lambda p: p["segments"][3].update(cut={**p["segments"][0]["cut"]})),
    ("said to cross", lambda p: p.update(crossing=[0, 1])),
    ("said to cross", lambda p: p.update(crossing=[0, 9])),
    ("names for 1", lambda p: first(p["paths"]).update(prefixes=[""])),
    ("has no size", lambda p: p["kv_groups"][0].update(page_tokens=0)),
    ("has no size", lambda p: p["kv_groups"][0].update(window=0)),
    ("unknown dtype", lambda p: p["kv_groups"][0].update(dtype="x")),
    ("path that is not there", lambda p: p["chains"][0].update(path="f" * 64)),
    ("takes no tokens", lambda p: p["chains"][0].update(max_model_len=0)),
    ("names 2 classes", lambda p: p["chains"][0].update(labels=["yes", "no"])),
    ("sides of low_rank", lambda p: p["chains"][0].update(side_kinds=["low_rank@linear"])),
    ("no room for tokens", lambda p: p["chains"][0].update(virtual_tokens=[0] * 100_000)),
    ("segment that is not there", lambda p: p["chains"][0].update(segments=[0, 1, 3, 9])),
    ("lists other chains|are not its path", lambda p: p["chains"][0].update(segments=[0, 1])),
    ("KV group that is not there", lambda p: p["chains"][0]["kv"][0].update(group=7)),
    ("does not fit", lambda p: p["chains"][0]["kv"].reverse()),
    ("do not cover", lambda p: p["chains"][0]["kv"].pop()),
    ("chain that is not there", lambda p: p["apps"][0].update(chain=-1)),
    ("has no weight", lambda p: p["apps"][0].update(weight=0)),
    ("differ in weight", lambda p: p["apps"][0].update(weight=2)),
    ("one address", lambda p: p["apps"].append(p["apps"][0])),
    ("has no base", lambda p: p["models"]["base"].update(parent="tuned")),
    ("name different chains", lambda p: p["models"]["base"].update(chain=99)),
    ("chain that is not there", lambda p: p["models"]["adapter1"].update(chain=99)),
    ("node that is not there", lambda p: p["devices"][0].update(node="moon")),
    ("reserves more", lambda p: p["devices"][0].update(reserve_bytes=1 << 50)),
    ("link", lambda p: p["links"].append({"source": 0, "target": 4, "bytes_per_s": 1, "latency_s": 0})),
    ("device that is not there", lambda p: p["instances"][0].update(devices=[3])),
    ("something that is not there", lambda p: p["instances"][0]["chains"].append(44)),
    ("something that is not there", lambda p: p["instances"][0].update(segments=[0, 0, 1])),
    ("KV group that is not there", lambda p: p["instances"][0]["kv_pages"].update({"9": 1})),
    ("too few", lambda p: p["instances"][0]["kv_pages"].update({"0": 1})),
    ("too few", lambda p: p["instances"][0]["kv_pages"].pop("0")),
    ("rows", lambda p: p["instances"][0].update(max_rows=0)),
    ("or no chain", lambda p: p["instances"][0].update(chains=[])),
    ("exactly one route", lambda p: p["routes"].pop()),
    ("has no route", lambda p: p["routes"][0].update(alternatives=[])),
    ("instance that is not there", lambda p: p["routes"][0].update(alternatives=[[1]])),
    ("instance that is not there", lambda p: p["routes"][0].update(alternatives=[[0, 0]])),
    ("does not run it", lambda p: p["instances"][0]["chains"].remove(0)),
    ("misses segments", lambda p: p["instances"][0].update(segments=[0])),
    ("edge", lambda p: p["edges"].append({"source": 0, "target": 1})),
    ("not listed", lambda p: p["memory"].clear()),
    ("listed twice", lambda p: p["memory"].append(p["memory"][0])),
    ("differ", lambda p: p["memory"][0].update(capacity_bytes=1)),
    ("beyond its memory", lambda p: p["memory"][0].update(weights_bytes=1 << 40)),
    ("KV bytes", lambda p: p["memory"][0].update(kv_bytes=p["memory"][0]["kv_bytes"] - 1)),
    ("one token of each row", lambda p: p["batching"].update(max_rows=10_000)),
    ("figures", lambda p: p["solver"].update(gap=-1)),
]


@pytest.mark.parametrize(("said", "change"), CONTRADICTIONS)
def test_contradictions(content: dict[str, Any], said: str, change: Any) -> None:
    changed = copy.deepcopy(content)
    change(changed)
    problem = plan_problem(ExecutionPlan.model_validate(changed))
    assert problem is not None
    assert any(part in problem for part in said.split("|")), problem
    assert len(problem) < 300


def test_our_own_contradictions_are_bugs(content: dict[str, Any]) -> None:
    changed = copy.deepcopy(content)
    changed["routes"].pop()
    with pytest.raises(AssertionError, match="exactly one route"):
        verify_plan(ExecutionPlan.model_validate(changed))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from places(value[index], (*path, index))


REPLACEMENTS: list[Any] = [
    None,
    -1,
    0,
    1,
    99,
    2**70,
    0.5,
    "",
    "x",
    "f" * 64,
    [],
    {},
    [0],
    [-1],
    [99],
    [[99]],
    {"0": -1},
]


def test_nothing_makes_the_check_fail(content: dict[str, Any]) -> None:
    """Replace, remove and repeat anything anywhere: a contradiction or none, never an exception."""
    generator = random.Random(11)
    every = [path for path in places(content) if path]
    tried = 0
    for _ in range(2500):
        path = generator.choice(every)
        changed = copy.deepcopy(content)
        owner: Any = changed
        for key in path[:-1]:
            owner = owner[key]
        match generator.randrange(4):
            case 0:
                del owner[path[-1]]
            case 1 if isinstance(owner, list):
                owner.append(copy.deepcopy(owner[path[-1]]))
            case 2 if isinstance(owner, list):
                generator.shuffle(owner)
            case _:
                owner[path[-1]] = generator.choice(REPLACEMENTS)
        try:
            plan = ExecutionPlan.model_validate(changed)
        except ValidationError:
            continue
        tried += 1
        assert plan_problem(plan) is None or isinstance(plan_problem(plan), str)
    assert tried > 500


def test_a_structure_is_never_executed(content: dict[str, Any]) -> None:
    changed = copy.deepcopy(content)
    text = "structure v1\ninput x: F32[1]\n%0 = __import__.os(%x)\nreturn %0\n"
    changed["structures"] = {digest(text): text}
    problem = plan_problem(ExecutionPlan.model_validate(changed))
    assert problem is not None
    assert "not an op" in problem
