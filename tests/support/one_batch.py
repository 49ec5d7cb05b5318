"""A base and a fine-tune of every kind in one step of the engine, each row compared with its model run alone.

The bases are those of ``tests/fixtures/adapterhub``: what AdapterHub's library wrote fits no others.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file

from blockc.verify.reference import Reference, reference
from blockc.verify.served import Answer, Question, serve_greedily
from blockc_runtime.step import Step
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_adapter, save_full, save_vectors
from tests.support.serving import Compiled, compiled

FIXTURES = Path(__file__).parent.parent / "fixtures" / "adapterhub"
ARCHITECTURES = ("gpt2", "llama")
WORDED, ADDED = "head and new tokens", 4
_LENGTHS = (5, 14)  # of prompts: with all virtual tokens they fit into one step


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReport:
    """One row. ``max_difference``: of its logits from those of its model alone; ``change``: of these from the base's.

    ``tokens_equal``: whether its tokens are those that its model says alone.
    """

    model: str
    prompt_tokens: int
    max_difference: float
    change: float
    tokens_equal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """``rows_by_step``: how many rows each step of the engine had."""

    rows: tuple[RowReport, ...]
    rows_by_step: tuple[int, ...]


def fleet(architecture: str, root: Path) -> Compiled:
    """The base with one fine-tune of each kind that the architecture has, compiled in ``root``."""
    base = shutil.copytree(FIXTURES / architecture, root / architecture)
    gpt2 = architecture == "gpt2"
    saved = {
        name: save_adapter(base, root / name, config, seed=seed, vocabulary=vocabulary)
        for seed, (name, (config, vocabulary)) in enumerate(_adapters(gpt2).items())
    }
    saved |= _bottlenecks(architecture, root)
    if gpt2:  # the other one has no biases
        saved["bitfit"] = save_vectors(base, root / "bitfit")
    saved["partial"] = save_full(base, root / "partial", only="h.1." if gpt2 else "layers.1.")
    saved["full"] = save_full(base, root / "full", only="")
    fine_tunes = {name: ("base", directory) for name, directory in saved.items()}
    return compiled(deployment(base, fine_tunes, max_model_len=64), root / "zoo")


def measure(found: Compiled, root: Path, *, output_tokens: int = 12) -> BatchReport:
    """Ask every app at once, and each model alone."""
    rng = random.Random(3)
    questions = [
        Question(
            app=index,
            tokens=tuple(rng.randrange(found.plan.chains[app.chain].vocab_size) for _ in range(rng.randint(*_LENGTHS))),
            output_tokens=output_tokens,
        )
        for index, app in enumerate(found.plan.apps)
    ]
    steps: list[Step] = []
    answers = serve_greedily(found.plan, found.zoo, questions, together=True, on_step=steps.append)
    rows = []
    with reference(found.plan, "base", root, torch.float32) as base:
        for question, answer in zip(questions, answers, strict=True):
            model = found.plan.apps[question.app].model
            with reference(found.plan, model, root, torch.float32) as oracle:
                rows.append(_compared(model, question, answer, oracle, base))
    return BatchReport(rows=tuple(rows), rows_by_step=tuple(len(step.rows) for step in steps))


def _compared(model: str, question: Question, answer: Answer, oracle: Reference, base: Reference) -> RowReport:
    text = [*question.tokens, *answer.tokens]
    alone = oracle.logits(text)[len(question.tokens) - 1 : -1]
    known = answer.logits.shape[1] - (ADDED if model == WORDED else 0)  # the base has no rows of added tokens
    of_base = base.logits([min(token, known - 1) for token in text])[len(question.tokens) - 1 : -1]
    return RowReport(
        model=model,
        prompt_tokens=len(question.tokens),
        max_difference=float((answer.logits - alone).abs().max()),
        change=float((alone[:, :known] - of_base).abs().max()),
        tokens_equal=_greedy(question.tokens, len(answer.tokens), oracle) == answer.tokens,
    )


def _greedy(prompt: Sequence[int], count: int, oracle: Reference) -> tuple[int, ...]:
    """What the model says alone, one token after the other."""
    text = list(prompt)
    for _ in range(count):
        text.append(int(oracle.logits(text)[-1].argmax()))
    return tuple(text[len(prompt) :])


def _adapters(gpt2: bool) -> dict[str, tuple[PeftConfig, int | None]]:
    """Configurations of PEFT's, and the vocabulary where it is another one than the base's."""
    linears = ["c_attn", "c_proj", "c_fc"] if gpt2 else ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    layout = {"fan_in_fan_out": gpt2}

    def lora(rank: int, **settings: Any) -> PeftConfig:
        return LoraConfig(
            r=rank, lora_alpha=2 * rank if rank < 64 else 32, target_modules=linears, **layout, **settings
        )

    task = {"task_type": "CAUSAL_LM"}
    vocabulary = json.loads((FIXTURES / "gpt2" / "config.json").read_text())["vocab_size"] + ADDED
    return {
        **{f"lora rank {rank}": (lora(rank), None) for rank in (4, 8, 16, 64)},
        "dora": (lora(8, use_dora=True), None),
        "ia3": (IA3Config(target_modules=linears[:1] + linears[-1:], feedforward_modules=linears[-1:], **layout), None),
        "prefix": (PrefixTuningConfig(num_virtual_tokens=5, **task), None),
        "prompt": (PromptTuningConfig(num_virtual_tokens=3, **task), None),
        WORDED: (lora(4, modules_to_save=["lm_head"]), vocabulary),
    }


def _bottlenecks(architecture: str, root: Path) -> dict[str, Path]:
    """Pfeiffer's adapter after each layer, Houlsby's after each of its halves; verify's root holds copies of them."""
    if architecture != "gpt2":
        return {kind: shutil.copytree(FIXTURES / f"llama-{kind}", root / kind) for kind in ("pfeiffer", "houlsby")}
    # The library's GPT-2 adapter stands after both halves in Pfeiffer's form; the two others are made of its parts.
    kinds = ("pfeiffer of both halves", "pfeiffer", "houlsby")
    made = {kind: shutil.copytree(FIXTURES / "gpt2-pfeiffer", root / kind) for kind in kinds}
    _configure(made["houlsby"], original_ln_before=False, non_linearity="swish")
    _configure(made["pfeiffer"], mh_adapter=False)
    file = made["pfeiffer"] / "adapter.safetensors"
    save_file({name: own for name, own in load_file(file).items() if "attention_adapters" not in name}, file)
    return made


def _configure(adapter: Path, **fields: Any) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"config": config["config"] | fields}))
