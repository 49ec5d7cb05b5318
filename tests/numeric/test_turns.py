"""Full fine-tunes whose blocks take turns in less memory than they have say what they say with memory for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from blockc.ir.layout import format_bytes
from blockc.spec.deployment import Policy, Quantize
from blockc_runtime.limits import engine_limits
from blockc_runtime.step import Step
from tests.support.adapters import LLAMA_LINEARS
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_adapter, save_full
from tests.support.serving import Compiled, answers, compiled
from tests.support.tiny_models import save_model

POLICY = Policy(max_rows=4, max_batched_tokens=128)


def models(root: Path, base: Path) -> dict[str, tuple[str, Path]]:
    """Whole models, models that differ in the upper layer, and LoRAs on the base, on one of each."""
    saved = {f"whole{n}": ("base", save_model("llama", root / f"whole{n}", seed=10 + n)) for n in range(3)}
    saved |= {
        f"upper{n}": ("base", save_full(base, root / f"upper{n}", only=f"layers.1.{part}"))
        for n, part in enumerate(("mlp", "self_attn"))
    }
    config = LoraConfig(r=4, lora_alpha=8, target_modules=LLAMA_LINEARS)
    for number, parent in enumerate(("base", "whole0", "upper1")):
        saved[f"lora{number}"] = (parent, save_adapter(base, root / f"lora{number}", config, seed=number))
    return saved


@pytest.fixture(scope="module")
def fleets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Compiled, Compiled]:
    root = tmp_path_factory.mktemp("turns")
    base = save_model("llama", root)
    saved = models(root, base)
    everyone = compiled(deployment(base, saved, max_model_len=64, policy=POLICY), root / "zoo")
    few = compiled(deployment(base, saved, max_model_len=64, policy=tight(everyone)), root / "zoo")
    return everyone, few


def tight(everyone: Compiled) -> Policy:
    """Room for two thirds of what fine-tunes have of their own."""
    return replace(POLICY, blocks_limit_bytes=everyone.plan.memory[0].weights_bytes * 4 // 10)


def test_the_plan_says_what_takes_turns(fleets: tuple[Compiled, Compiled]) -> None:
    everyone, few = fleets
    (own,) = few.plan.instances
    assert not everyone.plan.instances[0].turns
    assert {turn.kept for turn in own.turns} == {"zoo"}
    base = few.plan.chains[few.plan.models["base"].chain or 0]
    turning = {turn.segment for turn in own.turns}
    assert turning.isdisjoint(base.segments)
    for name in ("whole0", "whole2", "upper0", "upper1"):
        chain = few.plan.models[name].chain
        assert chain is not None
        assert turning & set(few.plan.chains[chain].segments), name
    memory, whole = few.plan.memory[0], everyone.plan.memory[0]
    limit = tight(everyone).blocks_limit_bytes
    assert limit is not None
    assert own.room_bytes < memory.blocks_bytes <= limit, format_bytes(memory.blocks_bytes)
    assert memory.weights_bytes + sum(turn.nbytes for turn in own.turns) == whole.weights_bytes
    assert "turns:zoo" in few.plan.requires


def test_logits_are_those_of_memory_for_all(fleets: tuple[Compiled, Compiled]) -> None:
    everyone, few = fleets
    steps: list[Step] = []
    for wanted, found in zip(answers(everyone), answers(few, steps), strict=True):
        assert found.tokens == wanted.tokens
        torch.testing.assert_close(found.logits, wanted.logits, atol=2e-5, rtol=0)
    turns = engine_limits(few.plan).turns
    used = [{s for row in step.rows for s in few.plan.chains[row.chain].segments if s in turns} for step in steps]
    assert all(sum(turns[s].nbytes for s in own) <= few.plan.instances[0].room_bytes for own in used)
    assert set().union(*used) == turns.keys()


def test_integers_take_turns(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path)
    saved = {f"whole{n}": ("base", save_model("llama", tmp_path / f"whole{n}", seed=10 + n)) for n in range(2)}
    given = deployment(base, saved, max_model_len=64, policy=POLICY)
    given = replace(given, bases={"base": replace(given.bases["base"], quantize=Quantize(bits=8, group=None))})
    everyone = compiled(given, tmp_path / "zoo")
    limit = everyone.plan.memory[0].weights_bytes * 6 // 10
    few = compiled(replace(given, policy=replace(POLICY, blocks_limit_bytes=limit)), tmp_path / "zoo")
    assert len(few.plan.instances[0].turns) == 2
    for wanted, found in zip(answers(everyone, rounds=1), answers(few, rounds=1), strict=True):
        assert found.tokens == wanted.tokens
        torch.testing.assert_close(found.logits, wanted.logits, atol=2e-5, rtol=0)
