"""Segments whose weights come and go: what they compute is what they compute with memory for all."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch

from blockc.ir import parse_structure
from blockc.ir.layout import block_tensors
from blockc.ir.turns import reading_bytes
from blockc.plan import ExecutionPlan, TurnEntry, segment_blocks, turning_tensors
from blockc.zoo import Zoo
from blockc_runtime.executor.torch_ import TorchExecutor
from blockc_runtime.step import SegmentTurn
from tests.e2e.fleet import flipped
from tests.runtime.executor import structures
from tests.runtime.executor.driver import Driver, new_zoo
from tests.runtime.executor.models import llama_spec, make_llama
from tests.runtime.executor.plans import PlanBuilder, reference
from tests.support.device import DEVICE

MODELS = 3
PROMPT = list(range(1, 12))


def plan_of(zoo: Zoo, dtype: torch.dtype) -> ExecutionPlan:
    """Three models in two segments each. Norms are the same in all; two have a matrix of joined ones in common."""
    models = [make_llama(seed, dtype) for seed in range(MODELS)]
    with torch.no_grad():
        models[1].model.layers[1].self_attn.k_proj.weight.copy_(models[0].model.layers[1].self_attn.k_proj.weight)
    builder = PlanBuilder(zoo)
    for model in models:
        builder.add(llama_spec(model, cuts=(3,)))
    return builder.build()


def turns_of(plan: ExecutionPlan, segments: Sequence[int], kept: Literal["zoo", "host"] = "zoo") -> ExecutionPlan:
    turns = tuple(TurnEntry(segment=segment, nbytes=0, kept=kept) for segment in segments)
    return plan.model_copy(update={"instances": (plan.instances[0].model_copy(update={"turns": turns}),)})


def sizes(plan: ExecutionPlan) -> list[int]:
    """By segment, as placement counts them."""
    own = turning_tensors(turns_of(plan, range(len(plan.segments))))
    return [
        sum(
            tensor.nbytes
            for tensor in {
                tensor
                for digest in segment_blocks(plan, segment)
                for block in (plan.blocks[digest],)
                for tensor in block_tensors(parse_structure(plan.structures[block.structure]), block.tensors)
            }
            if tensor.ref.digest in digests
        )
        for segment, digests in own.items()
    ]


def arrive(executor: TorchExecutor, count: int) -> list[tuple[int, str | None]]:
    found: list[tuple[int, str | None]] = []
    for _ in range(2000):
        found += executor.brought()
        if len(found) >= count:
            return found
        time.sleep(0.005)
    raise AssertionError("nothing arrives")


def drawn(driver: Driver, chain: int) -> tuple[list[int], list[torch.Tensor]]:
    sequence = driver.start(chain, PROMPT)
    driver.generate([sequence], 4)
    for group, pages in zip(driver.plan.chains[chain].kv, sequence.pages, strict=True):
        driver.free[group.group] += [page for page in pages if page is not None]
    return sequence.tokens, sequence.logits


@pytest.mark.parametrize("kept", ["zoo", "host"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_those_of_memory_for_all(tmp_path: Path, dtype: torch.dtype, kept: Literal["zoo", "host"]) -> None:
    zoo = new_zoo(tmp_path / "zoo")
    plan = plan_of(zoo, dtype)
    everyone = Driver(plan, zoo)
    wanted = [drawn(everyone, chain) for chain in range(MODELS)]
    few = Driver(turns_of(plan, [1, 2, 3, 4, 5], kept), zoo)
    executor = few.executor
    rng = random.Random(1)
    here: list[int] = []
    for chain in [*range(MODELS), *(rng.randrange(MODELS) for _ in range(8))]:
        missing = [segment for segment in plan.chains[chain].segments if segment not in (0, *here)]
        out = tuple(here) if missing else ()
        for segment in missing:
            executor.bring(SegmentTurn(segment=segment, out=out))
            here, out = [*(here if not out else []), segment], ()
        assert arrive(executor, len(missing)) == [(segment, None) for segment in missing]
        tokens, logits = drawn(few, chain)
        assert tokens == wanted[chain][0]
        torch.testing.assert_close(logits, wanted[chain][1], rtol=0, atol=0)
        assert executor._model is not None
        assert executor._model.turning.nbytes <= sum(sizes(plan)[segment] for segment in here)
    executor.close()


def test_a_row_without_its_weights_is_refused(tmp_path: Path) -> None:
    zoo = new_zoo(tmp_path / "zoo")
    plan = turns_of(plan_of(zoo, torch.float32), [2, 3])
    driver = Driver(plan, zoo)
    sequence = driver.start(1, PROMPT)
    for ready in (0, 1):
        (refused,) = driver.step([driver.row(sequence, len(PROMPT), samples=1)])
        assert refused.fault is not None, "one of two segments is not enough"
        assert refused.fault.message == "its blocks are not in memory"
        driver.executor.bring(SegmentTurn(segment=2 + ready))
        arrive(driver.executor, 1)
    (done,) = driver.step([driver.row(sequence, len(PROMPT), samples=1)])
    assert done.fault is None
    driver.executor.bring(SegmentTurn(segment=3, out=(3,)))
    (refused,) = driver.step([driver.row(sequence, len(PROMPT), samples=1)])
    assert refused.fault is not None
    driver.executor.close()


def test_a_damaged_tensor_is_told_and_stops_nobody_else(tmp_path: Path) -> None:
    zoo = new_zoo(tmp_path / "zoo")
    plan = turns_of(plan_of(zoo, torch.float32), [1, 3, 5])
    head = plan.paths[plan.chains[1].path].blocks[-2]
    digest = plan.blocks[head].tensors["down_proj"].digest
    (place,) = [(name, span) for name, spans in zoo.packs().items() for span in spans if span.name == digest]
    flipped(zoo.root / "packs" / place[0], at=(place[1].start + place[1].end) // 2)
    fresh = Zoo(zoo.root)
    driver = Driver(plan, fresh)
    for segment in (3, 5):
        driver.executor.bring(SegmentTurn(segment=segment))
    (bad, good) = arrive(driver.executor, 2)
    assert bad[0] == 3
    assert "BC903" in (bad[1] or "")
    assert good == (5, None)
    assert len(drawn(driver, 2)[0]) == len(PROMPT) + 4
    driver.executor.close()


def test_what_is_shared_is_always_there(tmp_path: Path) -> None:
    zoo = new_zoo(tmp_path / "zoo")
    plan = plan_of(zoo, torch.float32)
    common = {ref.digest for ref in plan.blocks[plan.paths[plan.chains[0].path].blocks[3]].tensors.values()} & {
        ref.digest for ref in plan.blocks[plan.paths[plan.chains[1].path].blocks[3]].tensors.values()
    }
    assert len(common) == 2, "a norm and a matrix"
    executor = TorchExecutor(turns_of(plan, range(6)), zoo, device=DEVICE)
    assert executor._model is not None
    store = executor._model.store
    assert {digest for key in store._linears for digest in key} | set(store._tensors) >= common
    total = TorchExecutor(plan, zoo, device=DEVICE)
    assert total._model is not None
    assert store.nbytes < total._model.weights_bytes // 4
    assert store.nbytes + sum(sizes(plan)) >= total._model.weights_bytes
    executor.close()
    total.close()


def test_reading_counts_the_largest_joined_matrices() -> None:
    structure = parse_structure(structures.llama_attention(64, 4, 2, 16, 1e-5, "F32"))
    tensors = llama_spec(make_llama()).blocks[1].tensors
    refs = {name: reference(tensor)[0] for name, tensor in tensors.items()}
    assert reading_bytes(structure, refs) == 4 * 64 * (64 + 32 + 32)
