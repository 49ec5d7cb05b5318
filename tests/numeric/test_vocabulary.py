"""Fine-tunes that added tokens, by every way in which PEFT saves them, against the same adapter alone in PEFT.

The base's rows share each batch with theirs. Float32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from peft import IA3Config, LoraConfig, PeftConfig, TrainableTokensConfig

from blockc.verify.verify import verify
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_adapter
from tests.support.serving import Compiled, compiled
from tests.support.tiny_models import save_model

TOLERANCE = 2e-4
BASE, ADDED = 128, 12
WHOLE = BASE + ADDED
NEW = list(range(BASE, WHOLE))


@dataclass(frozen=True, kw_only=True)
class Case:
    """``saving``: options of `save_pretrained`."""

    config: PeftConfig
    vocabulary: int = WHOLE
    saving: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    linear: str
    table: str
    tied: bool
    bias: bool = False  # of its head


ARCHITECTURES = {
    "llama": Architecture(linear="q_proj", table="embed_tokens", tied=False),
    "llama-tied": Architecture(linear="q_proj", table="embed_tokens", tied=True),
    "gpt2": Architecture(linear="c_attn", table="wte", tied=True),
    "phi": Architecture(linear="q_proj", table="embed_tokens", tied=False, bias=True),
}


def cases(own: Architecture) -> dict[str, Case]:
    linear, table, head = own.linear, own.table, "lm_head"

    def lora(*targets: str, **settings: Any) -> LoraConfig:
        names = [linear, *targets]
        return LoraConfig(r=4, lora_alpha=8, target_modules=names, fan_in_fan_out=linear == "c_attn", **settings)

    plain: dict[str, Any] = {"save_embedding_layers": False}
    found = {
        "plain": Case(config=lora()),
        "smaller": Case(config=lora(), vocabulary=BASE - 8),
        "saved": Case(config=lora(modules_to_save=[table, head])),
        "saved alone": Case(config=lora(modules_to_save=[table, head]), saving=plain),
        "saved as one": Case(config=lora(modules_to_save=[table, head], ensure_weight_tying=own.tied)),
        "saved table": Case(config=lora(modules_to_save=[table])),
        "saved head": Case(config=lora(modules_to_save=[head])),
        "table": Case(config=lora(table, modules_to_save=[head])),
        "head": Case(config=lora(head, modules_to_save=[table])),
        "both": Case(config=lora(table, head)),
        "dora": Case(config=lora(head, use_dora=True, modules_to_save=[table])),
        "rows": Case(config=lora(trainable_token_indices=[5, *NEW[:-2]])),
        "ia3": Case(config=IA3Config(target_modules=[linear], feedforward_modules=[])),
    }
    if own.tied:
        found |= {
            "table of both": Case(config=lora(table)),
            "head of both": Case(config=lora(head)),
            "rows alone": Case(config=lora(trainable_token_indices=[5, *NEW]), saving=plain),
            "tokens": Case(config=TrainableTokensConfig(token_indices=[9, *NEW[::-1]], target_modules=[table])),
        }
    else:
        found["rows and head"] = Case(config=lora(head, trainable_token_indices=NEW))
    if not own.tied and not own.bias:
        both = lora(trainable_token_indices={table: [5, *NEW], head: NEW})
        found |= {"rows of both": Case(config=both), "rows of both alone": Case(config=both, saving=plain)}
    if own.linear == "q_proj" and own.tied:
        found["table and head as one"] = Case(config=lora(table, ensure_weight_tying=True))
    return found


def served(name: str, root: Path, *, only: Collection[str] = (), **settings: Any) -> Compiled:
    """``only``: of the cases; all of them if it is empty."""
    base = save_model(name, root / "base")
    tunes = {}
    for seed, (case, own) in enumerate(cases(ARCHITECTURES[name]).items()):
        if only and case not in only:
            continue
        directory = save_adapter(
            base, root / case, own.config, seed=seed, vocabulary=own.vocabulary, **own.saving
        )  # fmt: skip
        tunes[case] = ("base", directory)
    found = compiled(deployment(base, tunes, memory_bytes=4 << 30, **settings), root / "zoo")
    assert not list(found.diags)
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_and_tokens_equal_each_adapter_alone(name: str, tmp_path: Path) -> None:
    own = cases(ARCHITECTURES[name])
    sizes = {"base": BASE, **{case: one.vocabulary for case, one in own.items()}}
    check(served(name, tmp_path), tmp_path, sizes)


def check(found: Compiled, root: Path, sizes: Mapping[str, int]) -> None:
    chains = {app.model: found.plan.chains[app.chain] for app in found.plan.apps}
    assert {model: chain.vocab_size for model, chain in chains.items()} == sizes
    for report in verify(found.plan, found.zoo, root=root, prompts=4, output_tokens=6):
        assert report.passed, report
        assert report.max_error < TOLERANCE, report


def test_bfloat16_logits_are_as_close_as_rounding_allows(tmp_path: Path) -> None:
    """One case of each form in which tables and heads are kept: how they were saved does not matter any more."""
    forms = {"plain", "saved", "table", "both", "dora", "rows", "tokens", "ia3"}
    found = served("llama-tied", tmp_path, only=forms, dtype="bfloat16")
    reports = verify(found.plan, found.zoo, root=tmp_path, prompts=2, output_tokens=3)
    assert {report.model for report in reports} == forms | {"base"}
    for report in reports:
        assert report.max_error <= report.bound, report


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_in_stacks(name: str, tmp_path: Path) -> None:
    """Below another fine-tune, which has its vocabulary then, and on one."""
    base, own = save_model(name, tmp_path / "base"), ARCHITECTURES[name]
    lora = LoraConfig(target_modules=[own.linear], fan_in_fan_out=name == "gpt2")
    ia3 = IA3Config(target_modules=[own.linear], feedforward_modules=[], fan_in_fan_out=name == "gpt2")
    save_adapter(base, tmp_path / "lora", lora, seed=1)
    save_adapter(base, tmp_path / "ia3", ia3, seed=2)
    save_adapter(base, tmp_path / "worded", lora, seed=3, vocabulary=WHOLE)
    parents = {"lora": "base", "worded": "base", "lora on worded": "worded", "ia3 on worded": "worded",
               "worded on lora": "lora"}  # fmt: skip
    tunes = {model: (parent, tmp_path / model.partition(" ")[0]) for model, parent in parents.items()}
    found = compiled(deployment(base, tunes), tmp_path / "zoo")
    check(found, tmp_path, {"base": BASE, **{model: WHOLE if "worded" in model else BASE for model in parents}})


def test_another_vocabulary_is_caught(tmp_path: Path) -> None:
    """Negative control: the rows of another fine-tune's tokens in place of one's own."""
    base = save_model("llama", tmp_path / "base")
    config = LoraConfig(target_modules=["q_proj"])
    for seed, name in enumerate(("one", "other")):
        save_adapter(base, tmp_path / name, config, seed=seed, vocabulary=WHOLE)
    found = compiled(deployment(base, {name: ("base", tmp_path / name) for name in ("one", "other")}), tmp_path / "zoo")
    chain = {app.model: app.chain for app in found.plan.apps}
    apps = tuple(app.model_copy(update={"chain": chain[{"one": "other"}.get(app.model, app.model)]})
                 for app in found.plan.apps)  # fmt: skip
    plan = found.plan.model_copy(update={"apps": apps})
    reports = verify(plan, found.zoo, root=tmp_path, prompts=2, output_tokens=3)
    assert {report.model for report in reports if not report.passed} == {"one"}
