"""Errors are data with a scope, and spoil nobody else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blockc.diag import DiagnosticError
from blockc.plan import ExecutionPlan
from blockc_runtime.capabilities import missing
from blockc_runtime.executor.torch_ import TorchExecutor
from blockc_runtime.step import Step
from tests.runtime.executor.driver import Driver, new_zoo
from tests.runtime.executor.models import llama_spec, make_llama
from tests.runtime.executor.plans import PlanBuilder


@pytest.fixture
def builder(tmp_path: Path) -> PlanBuilder:
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"))
    model = make_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[50] = float("nan")  # a token that spoils its row
    builder.add(llama_spec(model, cuts=(3,)))
    return builder


@pytest.fixture
def driver(builder: PlanBuilder) -> Driver:
    return Driver(builder.build(), builder.zoo)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": ()},
        {"tokens": (97,)},
        {"tokens": (-1,)},
        {"start": -1},
        {"start": 9},
        {"start": 300},
        {"pages": ()},
        {"pages": ((None,),)},
        {"pages": ((64,),)},
        {"pages": ((-1,),)},
        {"samples": 2},
        {"chain": 1},
        {"chain": -1},
    ],
)
def test_a_row_that_cannot_run_is_refused_alone(driver: Driver, change: dict[str, object]) -> None:
    good = driver.row(driver.start(0, [1]), 1, samples=1)
    bad = replace(driver.row(driver.start(0, [1]), 1, samples=1), **change)  # type: ignore[arg-type]
    first, second = driver.step([bad, good])
    assert first.fault is not None
    assert first.fault.scope == "row"
    assert second.fault is None
    assert len(second.tokens) == 1


@pytest.mark.parametrize("samples", [0, 1])
def test_a_nan_is_its_rows_own_fault(driver: Driver, samples: int) -> None:
    alone = driver.step([driver.row(driver.start(0, [1, 2]), 2, samples=1)])
    poisoned = driver.row(driver.start(0, [50, 2]), 2, samples=samples)
    good = driver.row(driver.start(0, [1, 2]), 2, samples=1)
    first, second = driver.step([poisoned, good])
    assert first.fault is not None
    assert first.fault.scope == "row"
    assert second == alone[0]


def test_a_head_that_is_not_finite_faults_its_rows(tmp_path: Path) -> None:
    model = make_llama()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"))
    builder.add(llama_spec(model))
    driver = Driver(builder.build(), builder.zoo)
    fault = driver.step([driver.row(driver.start(0, [1]), 1, samples=1)])[0].fault
    assert fault is not None
    assert fault.scope == "row"


def test_pages_of_a_poisoned_row_do_not_poison_whoever_gets_them(driver: Driver) -> None:
    poisoned = driver.row(driver.start(0, [50, 50, 50]), 3, samples=1)
    assert driver.step([poisoned])[0].fault is not None
    clean = replace(poisoned, tokens=(1,))
    again = driver.row(driver.start(0, [1]), 1, samples=1)
    assert driver.step([clean]) == driver.step([again])


def test_an_exception_in_a_launch_is_the_fault_of_its_rows(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    good = driver.step([driver.row(driver.start(0, [1]), 1, samples=1)])
    with monkeypatch.context() as patch:
        patch.setattr("blockc_runtime.executor.launch.StepRun._pass", broken)
        rows = [driver.row(driver.start(0, [token]), 1, samples=1) for token in (1, 2)]
        results = driver.step(rows)
    for result in results:
        assert result.fault is not None
        assert result.fault.scope == "launch"
        assert "out of memory" in result.fault.message
        assert result.tokens == ()
    assert driver.step([driver.row(driver.start(0, [1]), 1, samples=1)]) == good


def test_a_step_that_makes_no_sense_is_the_workers_fault(driver: Driver) -> None:
    row = driver.row(driver.start(0, [1]), 1, samples=1)
    driver.executor.submit(Step(id=7, epoch=0, rows=(row,), launches=(None,)))  # type: ignore[arg-type]
    result = driver.executor.collect()
    assert result.step == 7
    assert result.rows[0].fault is not None
    assert result.rows[0].fault.scope == "worker"


def test_steps_are_collected_in_order_and_close_is_idempotent(driver: Driver) -> None:
    row = driver.row(driver.start(0, [1]), 1)
    for number in (1, 2):
        driver.executor.submit(Step(id=number, epoch=0, rows=(row,), launches=()))
    assert [driver.executor.collect().step for _ in range(2)] == [1, 2]
    driver.executor.close()
    driver.executor.close()


def changed(builder: PlanBuilder, what: str) -> ExecutionPlan:
    """The plan with one thing wrong."""
    plan = builder.build()
    block = next(iter(builder.paths.values())).blocks[1]
    match what:
        case "tensor":
            entry = plan.blocks[block]
            name, ref = next(iter(entry.tensors.items()))
            gone = ref.model_copy(update={}) if hasattr(ref, "model_copy") else replace(ref, digest="0" * 64)
            update = {"tensors": entry.tensors | {name: gone}}
            return plan.model_copy(update={"blocks": plan.blocks | {block: entry.model_copy(update=update)}})
        case "structure":
            structures = {digest: text.replace("aten.add", "aten.mul") for digest, text in plan.structures.items()}
            return plan.model_copy(update={"structures": structures})
        case "window":
            groups = tuple(g.model_copy(update={"window": 5}) for g in plan.kv_groups)
            return plan.model_copy(update={"kv_groups": groups})
        case "depth":
            first, second = plan.segments
            moved = second.model_copy(update={"first_kv_layer": 0})
            return plan.model_copy(update={"segments": (first, moved)})
        case _:
            shorter = plan.segments[1].model_copy(update={"count": 1})
            return plan.model_copy(update={"segments": (plan.segments[0], shorter)})


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("tensor", "BC904"),
        ("structure", "BC901"),
        ("window", "BC901"),
        ("depth", "BC905"),
        ("path", "BC901"),
    ],
)
def test_what_is_wrong_with_a_plan_is_a_diagnostic(builder: PlanBuilder, what: str, code: str) -> None:
    with pytest.raises(DiagnosticError, match=code):
        TorchExecutor(changed(builder, what), builder.zoo, device="cpu")


@pytest.mark.parametrize(
    ("requires", "lacks"),
    [
        (("format:1", "dtype:BF16", "dtype:F32", "kv:BF16", "op:blockc.attention"), ()),
        (("op:aten.silu.default", "side:low_rank@linear", "device:cpu", "devices:1"), ()),
        (("format:2", "dtype:Q4_0", "op:aten.sort.default"),) * 2,
        (("side:dora@linear", "devices:2", "device:tpu", "nonsense", "roles:readers"),) * 2,
    ],
)
def test_capabilities(builder: PlanBuilder, requires: tuple[str, ...], lacks: tuple[str, ...]) -> None:
    plan = builder.build().model_copy(update={"requires": requires})
    assert missing(plan) == lacks


def test_cuda_is_there_if_a_device_is(builder: PlanBuilder) -> None:
    plan = builder.build().model_copy(update={"requires": ("device:cuda",)})
    assert missing(plan) == (() if torch.cuda.is_available() else ("device:cuda",))
