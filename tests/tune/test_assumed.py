"""Chains from configurations alone: published sizes, one identity a tensor, and adapters read by the same rules."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig  # noqa: F401 - its import is slow, and belongs to no test's time

from blockc.diag import Diagnostics
from blockc.graph import Chain
from blockc.ir import Side
from blockc.spec.deployment import Assumption, Deployment
from blockc.trace import TracedModel, config_of, trace
from blockc.tune import ModelFiles, assume, parameter_count, read_models, trace_models, tune
from blockc.zoo import Zoo
from tests.support.adapters import save_lora
from tests.support.deployments import deployment
from tests.support.tiny_models import CONFIGS, save_model

# The few fields of the published configurations that decide the number of parameters.
LLAMA = {"model_type": "llama", "num_attention_heads": 32, "vocab_size": 128256}
PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "Llama-3-8B": (
        8_030_261_248,
        LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_key_value_heads": 8},
    ),
    "Llama-3.2-1B": (
        1_235_814_400,
        LLAMA
        | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_key_value_heads": 8}
        | {"tie_word_embeddings": True, "head_dim": 64},
    ),
    "TinyLlama-1.1B": (
        1_100_048_384,
        LLAMA
        | {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_key_value_heads": 4}
        | {"vocab_size": 32000},
    ),
    "Qwen2.5-7B": (
        7_615_616_512,
        {"model_type": "qwen2", "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}
        | {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "tie_word_embeddings": False},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_published(name: str) -> None:
    count, config = PUBLISHED[name]
    assert parameter_count(trace(config_of(config), dtype="bfloat16")) == count


_TRACED: dict[str, TracedModel] = {}


def traced_of(files: dict[str, ModelFiles], diags: Diagnostics) -> dict[str, TracedModel]:
    """As the compiler traces them; each configuration once for all tests, which is most of their time."""
    traced: dict[str, TracedModel] = {}
    for name, model in files.items():
        if model.is_full:
            key = json.dumps(model.config, sort_keys=True)
            if key not in _TRACED:
                _TRACED[key] = trace_models({name: model}, diags=diags)[name]
            traced[name] = _TRACED[key]
    return traced


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("models") / "base")


def save_config(root: Path, name: str = "llama") -> Path:
    root.mkdir()
    (root / "config.json").write_text(json.dumps(CONFIGS[name].to_dict()))
    return root


def assumed(plan: Deployment, *codes: str) -> dict[str, Chain]:
    diags = Diagnostics()
    files = read_models(plan, diags=diags, configuration_only=True)
    chains = assume(files, traced_of(files, diags), diags=diags)
    assert [item.code.id for item in diags] == list(codes)
    return chains


def with_assumptions(base: Path, assumptions: dict[str, tuple[str, Assumption]]) -> Deployment:
    plan = deployment(base, {name: (parent, base) for name, (parent, _) in assumptions.items()})
    tunes = {name: replace(tune, source=assumptions[name][1]) for name, tune in plan.fine_tunes.items()}
    return replace(plan, fine_tunes=tunes)


def lora(*targets: str, rank: int = 8) -> Assumption:
    return Assumption(kind="lora", rank=rank, targets=targets)


def full(*layers: int) -> Assumption:
    return Assumption(kind="full", changed_layers=(layers[0], layers[-1]) if layers else None)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1, 3]},
        {"target_modules": "all-linear", "exclude_modules": ["o_proj"], "use_rslora": True},
        {"target_modules": r".*layers\.[02]\..*(q|down)_proj", "rank_pattern": {"q_proj": 2}, "r": 6},
        {"rank_pattern": {"down_proj": 12}, "alpha_pattern": {"v_proj": 3}},
    ],
)
def test_an_adapter_has_the_sides_that_its_tensors_would_have(
    settings: dict[str, Any], weights: Path, tmp_path: Path
) -> None:
    adapter = save_lora(weights, tmp_path / "adapter", **settings)
    plan, diags = deployment(weights, {"tuned": ("base", adapter)}), Diagnostics()
    files = read_models(plan, diags=diags)
    real = tune(files, traced_of(files, diags), zoo=Zoo(tmp_path / "zoo", create=True), diags=diags)
    (adapter / "adapter_model.safetensors").unlink()
    without = deployment(save_config(tmp_path / "base"), {"tuned": ("base", adapter)})
    assert list(map(shape, assumed(without)["tuned"].sides)) == list(map(shape, real["tuned"].sides))


def shape(side: Side) -> tuple[object, ...]:
    return side.site, [
        (term.codec, [(role, t.shape, t.dtype) for role, t in term.tensors], term.scalars) for term in side.terms
    ]


def test_a_base_has_one_identity_whatever_refers_to_it(tmp_path: Path) -> None:
    base = save_config(tmp_path / "base")
    chains = assumed(
        with_assumptions(
            base,
            {
                "one": ("base", lora("q_proj")),
                "two": ("base", lora("q_proj")),
                "stacked": ("one", lora("v_proj", rank=2)),
                "top": ("base", full(2, 3)),
                "higher": ("top", full(3)),
                "other": ("base", full()),
            },
        )
    )
    paths = {name: chain.path for name, chain in chains.items()}
    assert paths["one"] == paths["two"] == paths["stacked"] == paths["base"]
    assert chains["one"].digest != chains["two"].digest
    assert chains["stacked"].sides[0].terms == chains["one"].sides[0].terms

    def changed(name: str, other: str) -> list[int]:
        pairs = zip(paths[name].blocks, paths[other].blocks, strict=True)
        return [index for index, (ours, theirs) in enumerate(pairs) if ours.digest != theirs.digest]

    layer = {index for index, sites in enumerate(paths["base"].sites) if any(".layers.2." in m for m in sites)}
    last = {index for index, sites in enumerate(paths["base"].sites) if any(".layers.3." in m for m in sites)}
    assert set(changed("top", "base")) == layer | last
    assert set(changed("higher", "top")) == last
    assert set(changed("higher", "base")) == layer | last
    assert changed("other", "base") == list(range(len(paths["base"].blocks)))
    assert not {t.digest for b in paths["top"].blocks for t in b.tensors.values()} & {
        t.digest for b in paths["other"].blocks for t in b.tensors.values()
    }


def test_tied_parameters_are_one_tensor_and_equal_ones_of_two_bases_are_two(tmp_path: Path) -> None:
    tied = assumed(deployment(save_config(tmp_path / "tied", "llama-tied")))["base"].path
    assert next(iter(tied.blocks[0].tensors.values())) in tied.blocks[-1].tensors.values()
    untied = assumed(deployment(save_config(tmp_path / "one")))["base"].path
    assert next(iter(untied.blocks[0].tensors.values())) not in untied.blocks[-1].tensors.values()
    second = assumed(deployment(save_config(tmp_path / "two")))["base"].path
    assert not {block.digest for block in untied.blocks} & {block.digest for block in second.blocks}


def test_a_folder_with_config_alone_is_taken_to_change_everything(tmp_path: Path) -> None:
    base, tuned = save_config(tmp_path / "base"), save_config(tmp_path / "tuned")
    chains = assumed(deployment(base, {"tuned": ("base", tuned)}))
    assert not {b.digest for b in chains["base"].path.blocks} & {b.digest for b in chains["tuned"].path.blocks}
    assert chains["base"].stop_token_ids == (2,)


@pytest.mark.parametrize(
    ("assumptions", "code", "words"),
    [
        ({"a": ("base", lora("q_porj", "v_proj"))}, "BC101", "`q_porj` of the targets of `a` is no linear of `base`"),
        ({"a": ("base", lora("embed_tokens"))}, "BC101", "is no linear"),
        ({"a": ("base", full(3, 4))}, "BC109", "layers 3 to 4, `base` has 4"),
        ({"a": ("base", full(10**9))}, "BC109", "`base` has 4"),
        ({"a": ("base", lora("q_proj")), "b": ("a", full())}, "BC208", "full fine-tune of the adapter `a`"),
    ],
)
def test_assumptions_that_the_base_contradicts(
    assumptions: dict[str, tuple[str, Assumption]], code: str, words: str, tmp_path: Path
) -> None:
    plan = with_assumptions(save_config(tmp_path / "base"), assumptions)
    diags = Diagnostics()
    files = read_models(plan, diags=diags, configuration_only=True)
    assume(files, traced_of(files, diags), diags=diags)
    (item,) = diags
    assert (item.code.id, item.help is not None) == (code, True)
    assert words in item.message


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"target_modules": ["W_pack"]}, "BC211"),
        ({"use_dora": True}, "BC207"),
        ({"r": 0}, "BC207"),
        ({"init_lora_weights": "pissa"}, "BC207"),
        ({"peft_type": "IA3"}, "BC208"),
        ({"peft_type": "OF_TOMORROW"}, "BC208"),
        ({"rank_pattern": {r"(.|\w)*[0-9]{2}": 4}}, "BC207"),
    ],
)
def test_adapter_configurations_are_refused_as_with_weights(change: dict[str, Any], code: str, tmp_path: Path) -> None:
    base, adapter = save_config(tmp_path / "base"), tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config | change))
    chains = assumed(deployment(base, {"tuned": ("base", adapter)}), code)
    assert set(chains) == {"base"}
