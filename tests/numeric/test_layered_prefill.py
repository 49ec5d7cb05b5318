"""Prompts that pass the layers in parts say what they say at once: all kinds of fine-tune, cut chains. Float32."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig

from blockc.spec.deployment import Policy
from blockc.verify.served import Answer, Question, serve_greedily
from blockc_runtime.step import Step
from tests.support.adapters import LLAMA_LINEARS
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_adapter, save_full
from tests.support.serving import Compiled, compiled
from tests.support.tiny_models import save_model

PARTS = 4
POLICY = Policy(max_rows=6, max_batched_tokens=48)
MODELS = ("llama", "gpt2", "mistral")  # the last one with a window


@pytest.fixture(scope="module", params=MODELS)
def fleets(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Compiled, Compiled]:
    """One spec, with prompts at once and in parts."""
    root: Path = tmp_path_factory.mktemp(request.param)
    base = save_model(request.param, root)
    linears = ["c_attn", "c_fc"] if request.param == "gpt2" else LLAMA_LINEARS
    down = ["c_fc"] if request.param == "gpt2" else ["down_proj"]
    configs = {
        "lora": LoraConfig(r=4, lora_alpha=8, target_modules=linears),
        "wide": LoraConfig(r=32, lora_alpha=8, target_modules=linears[:1]),
        "ia3": IA3Config(target_modules=[linears[0], *down], feedforward_modules=down),
        "prompt": PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
        "prefix": PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
    }
    saved = {
        name: ("base", save_adapter(base, root / name, config, seed=seed))
        for seed, (name, config) in enumerate(configs.items())
    }
    saved["upper"] = ("base", save_full(base, root / "upper", only="h.1." if request.param == "gpt2" else "layers.1."))
    names = ["base", *saved]
    apps = {"acme": {name: name for name in names[::2]}, "globex": {name: name for name in names[1::2]}}
    made = [
        compiled(deployment(base, saved, apps=apps, max_model_len=128, policy=policy), root / "zoo")
        for policy in (POLICY, replace(POLICY, prefill_parts=PARTS))
    ]
    return made[0], made[1]


def answers(found: Compiled, steps: list[Step]) -> list[Answer]:
    rng = random.Random(3)
    questions = [
        Question(app=app, tokens=tuple(rng.randrange(3, 90) for _ in range(count)), output_tokens=4)
        for count in (70, 20, 2, 13)
        for app in rng.sample(range(len(found.plan.apps)), len(found.plan.apps))
    ]
    return serve_greedily(found.plan, found.zoo, questions, together=True, on_step=steps.append)


def test_logits_are_those_of_prompts_at_once(fleets: tuple[Compiled, Compiled]) -> None:
    steps: list[Step] = []
    for wanted, found in zip(answers(fleets[0], []), answers(fleets[1], steps), strict=True):
        assert found.tokens == wanted.tokens
        torch.testing.assert_close(found.logits, wanted.logits, atol=5e-5, rtol=0)
    parted = [row for step in steps for row in step.rows if row.blocks is not None]
    assert {row.chain for row in parted} == set(range(len(fleets[1].plan.chains))), "every chain has a prompt in parts"
    assert any(
        launch.blocks is not None and any(step.rows[row].blocks is None for row in launch.rows)
        for step in steps
        for launch in step.launches
    ), "others decode beside them"
    assert any(set(step.parked) - {row.request for row in step.rows} for step in steps), "some wait parked"
