"""Every kind of fine-tune in one batch, on shared blocks, against the same fine-tune alone in PEFT. Float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from peft import IA3Config, LNTuningConfig, LoraConfig, PeftConfig, TrainableTokensConfig, VeraConfig
from safetensors.torch import load_file

from blockc.compiler import compile_deployment
from blockc.diag import Diagnostics
from blockc.plan import ExecutionPlan, SideManifest
from blockc.verify import AppReport, verify
from blockc.zoo import Zoo
from tests.support.adapters import LLAMA_LINEARS
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_adapter, save_vectors
from tests.support.tiny_models import save_model

# Logits of an engine in float32 that batches otherwise than the reference does.
TOLERANCE = 2e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """How an architecture calls its parts."""

    linears: list[str]
    table: str
    norms: list[str]
    options: dict[str, bool]


LLAMA = Names(linears=LLAMA_LINEARS, table="embed_tokens", norms=["input_layernorm", "norm"], options={})
GPT2 = Names(
    linears=["c_attn", "c_proj", "c_fc"], table="wte", norms=["ln_1", "ln_f"], options={"fan_in_fan_out": True}
)


def configurations(names: Names) -> dict[str, PeftConfig]:
    linears, table = names.linears, names.table

    def lora(targets: list[str], **settings: object) -> LoraConfig:
        return LoraConfig(target_modules=targets, **{"r": 4, "lora_alpha": 8} | names.options | settings)

    return {
        "rank 4": lora(linears),
        "rank 64": lora(linears[:2], r=64),
        "patterns": lora(linears, use_rslora=True, rank_pattern={linears[0]: 2}, alpha_pattern={linears[1]: 3}),
        "dora": lora(linears, use_dora=True),
        "dora and biases": lora(linears[:1], use_dora=True, bias="lora_only"),
        "all biases": lora(linears[:1], bias="all"),
        "lora bias": lora(linears, lora_bias=True),
        "head": lora([linears[0], "lm_head"]),
        "table": lora([linears[0], table]),
        "saved modules": lora(linears[:1], modules_to_save=[table, "lm_head", *names.norms]),
        "saved table": lora(linears[:1], modules_to_save=[table]),
        "saved as one": lora(linears[:1], modules_to_save=[table, "lm_head"], ensure_weight_tying=True),
        "table and head as one": lora([linears[0], table], ensure_weight_tying=True),
        "rows of tokens": lora(linears[:1], trainable_token_indices=[5, 3, 77]),
        "tokens": TrainableTokensConfig(token_indices=[3, 5, 8], target_modules=[table]),
        "ia3": IA3Config(target_modules=linears[1:], feedforward_modules=linears[-1:], **names.options),
        # Of linears that read one value only one scales what it reads.
        "ia3 apart": IA3Config(
            target_modules=[linears[0], linears[-2]], feedforward_modules=[linears[-2]], **names.options
        ),
        "vera": VeraConfig(r=4, target_modules=linears[:1], **names.options),
        "norms": LNTuningConfig(target_modules=names.norms),
    }


# Stacks: name -> (upper, lower).
STACKS = {"dora on ia3": ("dora", "ia3"), "ia3 on lora": ("ia3", "rank 4"), "biases on dora": ("vectors", "dora"),
          "a table twice": ("table", "table")}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Served:
    root: Path
    plan: ExecutionPlan
    zoo: Zoo

    def verified(self, plan: ExecutionPlan | None = None) -> dict[str, AppReport]:
        reports = verify(plan or self.plan, self.zoo, root=self.root, prompts=3, output_tokens=4)
        return {report.model: report for report in reports}


def compiled(architecture: str, names: Names, root: Path) -> Served:
    base = save_model(architecture, root / "base")
    tunes = {}
    for seed, (name, config) in enumerate(configurations(names).items()):
        tunes[name] = ("base", save_adapter(base, root / name, config, seed=seed))
    tunes["vectors"] = ("base", save_vectors(base, root / "vectors"))
    tunes |= {name: (lower, root / upper) for name, (upper, lower) in STACKS.items()}
    zoo, diags = Zoo(root / "zoo", create=True), Diagnostics()
    plan = compile_deployment(deployment(base, tunes, memory_bytes=8 << 30), zoo=zoo, diags=diags).plan
    assert not diags.has_errors
    return Served(root=root, plan=plan, zoo=zoo)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return compiled("llama-tied", LLAMA, tmp_path_factory.mktemp("llama"))


def test_kinds_on_a_llama_with_a_tied_head(llama: Served) -> None:
    check(llama)


def test_kinds_on_gpt2(tmp_path: Path) -> None:
    """Conv1D, biases, layer norms, a fused projection, a tied head."""
    check(compiled("gpt2", GPT2, tmp_path))


def test_biases_alone_on_opt(tmp_path: Path) -> None:
    """BitFit, alone and on a LoRA, where linears, norms and all else have biases."""
    base = save_model("opt", tmp_path / "base")
    lora = save_adapter(base, tmp_path / "lora", LoraConfig(target_modules=["q_proj", "fc1"]))
    vectors = save_vectors(base, tmp_path / "vectors")
    assert len(load_file(vectors / "model.safetensors")) == 3 * 8 + 1
    tunes = {"lora": ("base", lora), "vectors": ("base", vectors), "both": ("lora", vectors)}
    zoo, diags = Zoo(tmp_path / "zoo", create=True), Diagnostics()
    plan = compile_deployment(deployment(base, tunes), zoo=zoo, diags=diags).plan
    reports = Served(root=tmp_path, plan=plan, zoo=zoo).verified()
    assert plan.models["vectors"].kind == "bias"
    assert len(plan.chains) == len(reports) == 4
    assert all(report.passed and report.max_error <= TOLERANCE for report in reports.values()), reports


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_kinds_on_others(architecture: str, tmp_path: Path) -> None:
    check(compiled(architecture, LLAMA, tmp_path))


def check(served: Served) -> None:
    reports = served.verified()
    table = "\n".join(f"{name:16} {report.max_error:.1e} {report.agreed}" for name, report in reports.items())
    print(table)
    assert len(reports) == len(configurations(LLAMA)) + 2 + len(STACKS)
    assert all(report.passed and report.max_error <= TOLERANCE for report in reports.values()), table


@pytest.mark.parametrize(
    ("model", "codec", "change"),
    [
        ("dora", "out_scale", lambda term: None),
        ("ia3", "in_scale", lambda term: None),
        ("vectors", "value", lambda term: None),
        ("rows of tokens", "rows", lambda term: None),
        ("head", "low_rank", lambda term: term.model_copy(update={"scalars": {"scale": (1.0).hex()}})),
    ],
)
def test_a_term_that_is_dropped_or_changed_is_caught(
    model: str, codec: str, change: Callable[..., object], llama: Served
) -> None:
    """Negative controls: the comparison sees one codec missing at all sites."""
    index = next(app.chain for app in llama.plan.apps if app.model == model)
    chain = llama.plan.chains[index]
    assert chain.sides is not None
    manifest = SideManifest.model_validate_json(llama.zoo.blob(chain.sides))
    sides = []
    for side in manifest.sides:
        terms = [change(term) if term.codec == codec else term for term in side.terms]
        if kept := tuple(term for term in terms if term is not None):
            sides.append(side.model_copy(update={"terms": kept}))
    assert tuple(sides) != manifest.sides
    digest = llama.zoo.put_blob(SideManifest(sides=tuple(sides)).model_dump_json().encode())
    chains = list(llama.plan.chains)
    chains[index] = chain.model_copy(update={"sides": digest})
    apps = tuple(app for app in llama.plan.apps if app.model == model)
    plan = llama.plan.model_copy(update={"chains": tuple(chains), "apps": apps})
    assert not llama.verified(plan)[model].passed
