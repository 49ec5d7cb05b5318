"""What a fine-tune changes decides from which layer on its keys and values differ: a table."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockc.unify import kv_domains, unify
from tests.support.adapters import save_lora
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.tiny_models import save_model

LAYERS = 4

# Name -> (settings of the adapter, first layer whose K or V differ from the base's; LAYERS: none).
ADAPTERS = {
    "q at layer 1": ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, 2),
    "q at the last layer": ({"target_modules": ["q_proj"], "layers_to_transform": [3]}, LAYERS),
    "o at layer 0": ({"target_modules": ["o_proj"], "layers_to_transform": [0]}, 1),
    "k at layer 2": ({"target_modules": ["k_proj"], "layers_to_transform": [2]}, 2),
    "v at layer 0": ({"target_modules": ["v_proj"], "layers_to_transform": [0]}, 0),
    "MLP at layer 1": ({"target_modules": ["down_proj"], "layers_to_transform": [1]}, 2),
    "MLP at the last layer": ({"target_modules": ["up_proj", "down_proj"], "layers_to_transform": [3]}, LAYERS),
    "head": ({"target_modules": ["lm_head"]}, LAYERS),
    "everything": ({}, 0),
}
# Name -> (tensor that a full checkpoint changes, first layer that differs).
CHECKPOINTS = {
    "an embedding row": ("model.embed_tokens.weight", 0),
    "the final norm": ("model.norm.weight", LAYERS),
    "the head": ("lm_head.weight", LAYERS),
    "layer 2's input norm": ("model.layers.2.input_layernorm.weight", 2),
    "layer 2's other norm": ("model.layers.2.post_attention_layernorm.weight", 3),
    "layer 3's query": ("model.layers.3.self_attn.q_proj.weight", LAYERS),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model("llama", tmp_path_factory.mktemp("base"))


def _first_difference(chains):
    ours, theirs = kv_domains(chains["base"]), kv_domains(chains["tuned"])
    assert len(ours) == len(theirs) == LAYERS
    differs = [left != right for left, right in zip(ours, theirs, strict=True)]
    first = differs.index(True) if any(differs) else LAYERS
    assert all(differs[first:]), "domains that differ once differ ever after"
    return first


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapter(case, base, tmp_path):
    settings, expected = ADAPTERS[case]
    adapter = save_lora(base, tmp_path / "adapter", **settings)
    chains, _, diags = chains_of(deployment(base, {"tuned": ("base", adapter)}), tmp_path / "zoo")
    assert not diags.has_errors
    assert _first_difference(chains) == expected


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoint(case, base, tmp_path):
    changed, expected = CHECKPOINTS[case]
    directory = _changed_copy(base, tmp_path / "full", [changed])
    chains, _, diags = chains_of(deployment(base, {"tuned": ("base", directory)}), tmp_path / "zoo")
    assert not diags.has_errors
    assert _first_difference(chains) == expected


def test_groups_are_cut_where_chains_that_may_share_diverge(base, tmp_path):
    adapter = save_lora(base, tmp_path / "adapter", target_modules=["q_proj"], layers_to_transform=[1])
    chains, _, _ = chains_of(deployment(base, {"tuned": ("base", adapter)}), tmp_path / "zoo")
    together = unify(chains, together=[frozenset(chains)])
    assert [(group.first, group.count) for group in together.groups] == [(0, 2), (2, 2)]
    apart = unify(chains, together=[frozenset({"base"}), frozenset({"tuned"})])
    assert [(group.first, group.count) for group in apart.groups] == [(0, LAYERS)]


def test_segments_share_what_is_equal(base, tmp_path):
    top = _changed_copy(
        base, tmp_path / "top", [f"model.layers.3.{name}.weight" for name in ("mlp.up_proj", "self_attn.q_proj")]
    )
    adapter = save_lora(base, tmp_path / "adapter")
    chains, _, _ = chains_of(deployment(base, {"top": ("base", top), "tuned": ("base", adapter)}), tmp_path / "zoo")
    graph = unify(chains, together=[frozenset(chains)])
    assert [segment.count for segment in graph.segments] == [7, 2, 2, 1]
    shared = graph.segments[0]
    assert len(shared.paths) == 2
    assert graph.segments_of[graph.chain_of["base"]] == graph.segments_of[graph.chain_of["tuned"]]
    assert graph.segments[-1].count == 1
    assert len(graph.segments[-1].paths) == 2, "final norm and head are the base's again"


def test_equal_models_are_one_chain(base, tmp_path):
    copy = _changed_copy(base, tmp_path / "copy", [])
    chains, _, _ = chains_of(deployment(base, {"copy": ("base", copy)}), tmp_path / "zoo")
    graph = unify(chains, together=[])
    assert len(graph.chains) == 1
    assert graph.chain_of["base"] == graph.chain_of["copy"]


def _changed_copy(base, target, names):
    target.mkdir()
    for file in base.iterdir():
        if file.suffix == ".json":
            (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    for name in names:
        tensors[name] = tensors[name] + torch.ones_like(tensors[name]) * 0.01
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target
