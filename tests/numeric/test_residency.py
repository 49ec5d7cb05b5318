"""Fine-tunes that take turns in fewer slots than there are of them say what they say with a slot each. Float32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, PeftConfig, PrefixTuningConfig, TrainableTokensConfig

from blockc.measure import measure
from blockc.spec.deployment import Policy
from blockc_runtime.executor.torch_ import TorchExecutor
from blockc_runtime.step import Step
from tests.support.adapters import LLAMA_LINEARS
from tests.support.deployments import deployment
from tests.support.device import DEVICE
from tests.support.fine_tunes import save_adapter
from tests.support.serving import Compiled, answers, compiled
from tests.support.tiny_models import save_model

EACH = 3  # fine-tunes of a kind
NORMS = ["input_layernorm", "norm"]
POLICY = Policy(max_rows=16, max_batched_tokens=256)


def configurations() -> dict[str, PeftConfig]:
    """One of every form in which sides are stacked: matrices, vectors, rows, tables, cached keys."""
    linears = LLAMA_LINEARS
    return {
        "lora": LoraConfig(r=4, lora_alpha=8, target_modules=linears),
        "dora": LoraConfig(r=4, lora_alpha=8, target_modules=linears, use_dora=True),
        "rank 64": LoraConfig(r=64, lora_alpha=16, target_modules=linears[:2]),
        "ia3": IA3Config(target_modules=[*linears[:2], "down_proj"], feedforward_modules=["down_proj"]),
        "norms": LNTuningConfig(target_modules=NORMS),
        "tokens": TrainableTokensConfig(token_indices=[3, 5, 8], target_modules=["embed_tokens"]),
        "table": LoraConfig(r=4, lora_alpha=8, target_modules=[linears[0], "embed_tokens"]),
        "prefix": PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
    }


@pytest.fixture(scope="module")
def fleets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Compiled, Compiled]:
    """With a slot for everybody, and with as many as three quarters of the memory give."""
    root = tmp_path_factory.mktemp("residency")
    base = save_model("llama", root)
    saved = {
        f"{name} {number}": ("base", save_adapter(base, root / f"{name} {number}", config, seed=EACH * kind + number))
        for kind, (name, config) in enumerate(configurations().items())
        for number in range(EACH)
    }
    everyone = compiled(deployment(base, saved, max_model_len=64, policy=POLICY), root / "zoo")
    limit = everyone.plan.memory[0].sides_bytes * 3 // 4
    policy = replace(POLICY, sides_limit_bytes=limit)
    few = compiled(deployment(base, saved, max_model_len=64, policy=policy), root / "zoo")
    return everyone, few


def test_the_plan_says_how_many_are_resident(fleets: tuple[Compiled, Compiled]) -> None:
    everyone, few = fleets
    (slots,) = (instance.side_slots for instance in few.plan.instances)
    assert not everyone.plan.instances[0].side_slots
    assert len(slots) == len(configurations())
    assert all(1 <= count < EACH for count in slots.values()), slots
    assert few.plan.memory[0].sides_bytes <= everyone.plan.memory[0].sides_bytes * 3 // 4


def test_logits_are_those_of_a_slot_for_everybody(fleets: tuple[Compiled, Compiled]) -> None:
    everyone, few = fleets
    steps: list[Step] = []
    for wanted, found in zip(answers(everyone), answers(few, steps), strict=True):
        assert found.tokens == wanted.tokens
        torch.testing.assert_close(found.logits, wanted.logits, atol=2e-5, rtol=0)
    fills = [fill.chain for step in steps for fill in step.fills]
    assert set(fills) == {index for index, chain in enumerate(few.plan.chains) if chain.bank is not None}
    assert len(fills) > len(set(fills)), "some had to leave and come back"


def test_steps_are_measured_where_fine_tunes_take_turns(fleets: tuple[Compiled, Compiled]) -> None:
    """Loads on all chains wait for sides to be read; steps that fill slots are left out, and the others are there."""
    _, few = fleets
    executor = TorchExecutor(few.plan, few.zoo, device=DEVICE)
    samples = measure(few.plan, executor, repeats=1, budget_s=60.0)
    executor.close()
    limited = {index for index, chain in enumerate(few.plan.chains) if chain.bank is not None}
    assert len(limited & {row.chain for sample in samples for row in sample.rows}) > 1
