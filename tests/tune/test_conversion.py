"""Checkpoints whose tensors are not the model's parameters: what is loaded is what transformers loads from them.

`save_pretrained` writes the layout that is published (one tensor per expert, split or fused projections);
`from_pretrained` is the oracle.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from blockc.trace import loading_of
from blockc.tune.recipe import recipes_for

_SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
}  # fmt: skip
# Experts fused from one tensor each (three layouts), split and fused projections, an index that is moved, names only.
_CONVERTED = ["mixtral", "qwen2_moe", "olmoe", "hrm_text", "olmo_hybrid", "inkling2_text", "flint"]


def _saved(model_type, root):
    """A random model's class and its directory."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**_SMALL))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(root)
    return type(model)


def _loaded(kind, root):
    tensors = load_file(root / "model.safetensors")
    with torch.device("meta"):
        loading = loading_of(kind(kind.config_class.from_pretrained(root)))
    recipes = recipes_for({name: tuple(tensor.shape) for name, tensor in tensors.items()}, loading)
    made = {name: recipe.make(name, tensors.__getitem__, loading) for name, recipe in recipes.of.items()}
    return recipes, made, loading


@pytest.mark.parametrize("model_type", _CONVERTED)
def test_every_parameter_is_what_transformers_loads(model_type, tmp_path):
    kind = _saved(model_type, tmp_path)
    expected = kind.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    recipes, made, loading = _loaded(kind, tmp_path)
    assert recipes.strange + recipes.misfits + recipes.absent == ()
    assert expected.keys() - made.keys() <= loading.tied.keys() | set(loading.tied.values())
    assert all(torch.equal(made[name].to(expected[name].dtype), expected[name]) for name in made)


def test_old_names_of_norms_are_understood(tmp_path):
    kind = _saved("bert", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t.clone()
           for n, t in tensors.items()}  # fmt: skip
    assert old.keys() != tensors.keys()
    save_file(old, file, metadata={"format": "pt"})
    recipes, made, _ = _loaded(kind, tmp_path)
    assert recipes.strange + recipes.misfits + recipes.absent == ()
    expected = kind.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(made[name], expected[name]) for name in made)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixtral")
    _saved("mixtral", root)
    with torch.device("meta"):
        loading = loading_of(AutoModelForCausalLM.from_config(CONFIG_MAPPING["mixtral"](**_SMALL)))
    return {name: tuple(tensor.shape) for name, tensor in load_file(root / "model.safetensors").items()}, loading


def test_each_absent_expert_is_named(mixtral):
    shapes, loading = mixtral
    experts = [name for name in shapes if ".experts." in name]
    assert len(experts) == 2 * 4 * 3
    for name in experts:
        recipes = recipes_for({other: shape for other, shape in shapes.items() if other != name}, loading)
        assert recipes.absent == (name,)


def test_each_renamed_expert_is_named(mixtral):
    shapes, loading = mixtral
    for name in shapes:
        if ".experts." in name:
            renamed = {other.replace(name, f"{name}_old"): shape for other, shape in shapes.items()}
            recipes = recipes_for(renamed, loading)
            assert recipes.strange == (f"{name}_old",)
            assert recipes.absent == (name,)


def test_each_expert_of_another_number_is_named(mixtral):
    """They would be fused in order: one expert would answer for another."""
    shapes, loading = mixtral
    for name in shapes:
        if ".experts.3." in name:
            other = name.replace(".experts.3.", ".experts.7.")
            recipes = recipes_for({key.replace(name, other): shape for key, shape in shapes.items()}, loading)
            assert recipes.strange == (other,)
            assert recipes.absent == (name,)


def test_a_projection_that_no_expert_has(mixtral):
    shapes, loading = mixtral
    recipes = recipes_for(
        {n: shape for n, shape in shapes.items() if "0.block_sparse_moe.experts" not in n or "w3" not in n}, loading
    )
    assert recipes.absent == ("model.layers.0.mlp.experts.gate_up_proj (from .experts.*.w3.weight)",)


def test_each_misshapen_tensor_is_named(mixtral):
    shapes, loading = mixtral
    for name in shapes:
        recipes = recipes_for(shapes | {name: (shapes[name][0] - 1, *shapes[name][1:])}, loading)
        assert len(recipes.misfits) == 1
        assert name in recipes.misfits[0]


def test_a_tensor_in_both_layouts_is_refused(mixtral):
    shapes, loading = mixtral
    recipes = recipes_for(shapes | {"model.layers.0.mlp.experts.down_proj": (4, 32, 48)}, loading)
    assert recipes.strange


@pytest.mark.parametrize("name", ["²", "a" * 600, "x." + "9" * 490, "model.layers.0." * 30])
def test_strange_names_are_strange(name, mixtral):
    shapes, loading = mixtral
    assert recipes_for(shapes | {name: (1,)}, loading).strange == (name,)
