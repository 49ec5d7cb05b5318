"""Prompts and prefixes that would not be applied in full are refused, by code and by name."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file

from blockc.unify.domains import kv_domains
from tests.support.adapters import configure
from tests.support.architectures import save_random_model
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_adapter

COMMON = {"num_virtual_tokens": 5, "task_type": "CAUSAL_LM"}
FILE = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def prefix(base, tmp_path_factory):
    return save_adapter(base, tmp_path_factory.mktemp("prefix"), PrefixTuningConfig(**COMMON))


@pytest.fixture(scope="module")
def prompt(base, tmp_path_factory):
    return save_adapter(base, tmp_path_factory.mktemp("prompt"), PromptTuningConfig(**COMMON))


def _diagnose(base, directory, tmp_path, **more):
    tuned = {"tuned": ("base", directory), **more}
    chains, _, diags = chains_of(deployment(base, tuned, max_model_len=96), tmp_path / "zoo")
    assert (chains.keys() >= tuned.keys()) == (not diags.has_errors)
    return {item.code.id: " ".join((item.message, *item.notes)) for item in diags}


def _copied(directory, tmp_path, change=None, **fields):
    copy = shutil.copytree(directory, tmp_path / "copy")
    configure(copy, **fields)
    if change is not None:
        save_file(change(load_file(copy / FILE)), copy / FILE)
    return copy


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_the_untouched_one_is_accepted(kind, base, tmp_path, request):
    assert _diagnose(base, request.getfixturevalue(kind), tmp_path) == {}


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("num_virtual_tokens", 0, "BC207"),
        ("num_virtual_tokens", True, "BC207"),
        ("num_virtual_tokens", 1 << 60, "BC207"),
        ("num_virtual_tokens", 4, "BC202"),
        ("num_virtual_tokens", 96, "BC202"),
        ("task_type", "SEQ_CLS", "BC207"),
        ("task_type", None, "BC207"),
        ("num_transformer_submodules", 2, "BC207"),
        ("modules_to_save", ["lm_head"], "BC207"),
        ("a_field_of_tomorrow", 3, "BC207"),
        ("token_dim", 48, "BC202"),
    ],
)
def test_a_field_that_is_not_understood(kind, field, value, code, base, tmp_path, request):
    copy = _copied(request.getfixturevalue(kind), tmp_path, **{field: value})
    found = _diagnose(base, copy, tmp_path)
    assert set(found) == {code}
    assert field in found[code] or str(value) in found[code]


@pytest.mark.parametrize(("field", "value"), [("num_attention_heads", 4), ("num_layers", 3)])
def test_a_prefix_for_another_build(field, value, base, prefix, tmp_path):
    assert set(_diagnose(base, _copied(prefix, tmp_path, **{field: value}), tmp_path)) == {"BC202"}


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda held: held | {"lm_head.weight": torch.ones(2)}, "BC204"),
        (lambda held: {"embedding.weight": held["prompt_embeddings"]}, "BC211"),
        (lambda held: {"prompt_embeddings": held["prompt_embeddings"] / 0}, "BC203"),
        (lambda held: {"prompt_embeddings": held["prompt_embeddings"].t().contiguous()}, "BC202"),
        (lambda held: {"prompt_embeddings": held["prompt_embeddings"].to(torch.int8)}, "BC209"),
    ],
)
def test_a_tensor_that_does_not_fit(kind, change, code, base, tmp_path, request):
    assert code in _diagnose(base, _copied(request.getfixturevalue(kind), tmp_path, change), tmp_path)


def test_one_on_another(base, prefix, prompt, tmp_path):
    found = _diagnose(base, prefix, tmp_path, upper=("tuned", prompt))
    assert set(found) == {"BC208"}
    assert "whose stand first" in found["BC208"]


def test_a_prompt_for_a_base_that_scales_its_embeddings(tmp_path):
    base = save_random_model("gemma3_text", tmp_path / "base")
    prompt = save_adapter(base, tmp_path / "prompt", PromptTuningConfig(**COMMON))
    found = _diagnose(base, prompt, tmp_path)
    assert set(found) == {"BC208"}
    assert "scales the vectors of its tokens" in found["BC208"]


def test_the_same_ids_in_two_fine_tunes_are_different_tokens(base, prompt, tmp_path):
    other = save_adapter(base, tmp_path / "other", PromptTuningConfig(**COMMON), seed=7)
    chains, _, _ = chains_of(deployment(base, {"one": ("base", prompt), "two": ("base", other)}), tmp_path / "zoo")
    assert chains["one"].virtual_tokens == chains["two"].virtual_tokens
    assert not set(kv_domains(chains["one"])) & set(kv_domains(chains["two"]))


def test_a_prefix_leaves_no_domain_of_its_base(base, prefix, tmp_path):
    chains, _, _ = chains_of(deployment(base, {"tuned": ("base", prefix)}), tmp_path / "zoo")
    assert not set(kv_domains(chains["tuned"])) & set(kv_domains(chains["base"]))


def test_a_cached_side_counts_from_its_own_layer_on(base, prefix, tmp_path):
    chains, _, _ = chains_of(deployment(base, {"tuned": ("base", prefix)}), tmp_path / "zoo")
    upper = replace(chains["base"], sides=chains["tuned"].sides[2:])
    same = [one == other for one, other in zip(kv_domains(upper), kv_domains(chains["base"]), strict=True)]
    assert same == [True, True, False, False]
