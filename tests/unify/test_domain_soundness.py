"""Equal KV domains mean equal keys and values: what is proven is compared with what is computed, pair by pair."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockc.graph import Block
from blockc.ir import Bound, Op, Structure, Value, ValueType
from blockc.unify import domains, kv_domains
from tests.support import interpreter
from tests.support.adapters import save_lora
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.tiny_models import save_model

MODULES = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc", "c_proj"],
}
CONFIGURATIONS = {
    "llama": [{"rms_norm_eps": 1e-2}, {"hidden_act": "relu"}, {"rope_parameters": {"rope_type": "default",
                                                                                   "rope_theta": 99.0}}],
    "gpt2": [{"layer_norm_epsilon": 1e-2}, {"activation_function": "relu"}, {"scale_attn_weights": False}],
}  # fmt: skip


def _keys_and_values(chain, zoo, monkeypatch):
    seen = []
    attention = interpreter._Runner.attention

    def record(self, q, k, v, *rest):
        seen.append((k, v))
        return attention(self, q, k, v, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(interpreter._Runner, "attention", record)
        interpreter.logits(chain, zoo, list(range(3, 27)))
    return seen


def _checkpoint(base, target, rng, architecture):
    """A copy of the base with a tensor changed, or with another configuration."""
    shutil.copytree(base, target)
    if rng.random() < 0.4:
        config = json.loads((target / "config.json").read_text()) | rng.choice(CONFIGURATIONS[architecture])
        (target / "config.json").write_text(json.dumps(config))
        return
    tensors = load_file(target / "model.safetensors")
    name = rng.choice(sorted(tensors))
    tensors[name] = tensors[name] + 0.05
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module", params=MODULES)
def fleet(request, tmp_path_factory):
    """Random fine-tunes of one base, some without effect: their chains, and the K and V of each layer, computed."""
    architecture, root = request.param, tmp_path_factory.mktemp(request.param)
    rng = random.Random(architecture)
    base = save_model(architecture, root / "base")
    gpt2 = architecture == "gpt2"
    models = {}
    for index in range(10):
        name = f"m{index}"
        if rng.random() < 0.5:
            parent = rng.choice(["base", *models])
            targets = rng.sample(MODULES[architecture], rng.randint(1, 2))
            save_lora(base, root / name, seed=index, target_modules=targets, r=2,
                      layers_to_transform=rng.sample(range(4), 2), fan_in_fan_out=gpt2)  # fmt: skip
        else:
            parent = "base"
            _checkpoint(base, root / name, rng, architecture)
        models[name] = (parent, root / name)
    for name, settings in {"alpha": {"lora_alpha": 0}, "fresh": {}}.items():
        targets = MODULES[architecture][:1]
        save_lora(base, root / name, target_modules=targets, r=2, fan_in_fan_out=gpt2, **settings)
        models[name] = (rng.choice(["base", "m0"]), root / name)
    _zero_b(root / "fresh")
    chains, zoo, diags = chains_of(deployment(base, models), root / "zoo")
    assert not list(diags)
    with pytest.MonkeyPatch.context() as patch:
        return chains, {name: _keys_and_values(chain, zoo, patch) for name, chain in chains.items()}


def _zero_b(adapter):
    """As a LoRA is before its training."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors = {name: torch.zeros_like(tensor) if "lora_B" in name else tensor for name, tensor in tensors.items()}
    save_file(tensors, adapter / "adapter_model.safetensors")


def _compared(fleet):
    """Layers of pairs: proven equal and equal; proven equal and not; equal and not proven."""
    chains, computed = fleet
    proven = {name: kv_domains(chain) for name, chain in chains.items()}
    right, false, missed = [], [], []
    for one, other in combinations(sorted(chains), 2):
        for layer in range(4):
            pairs = zip(computed[one][layer], computed[other][layer], strict=True)
            equal = all(torch.equal(mine, theirs) for mine, theirs in pairs)
            if proven[one][layer] == proven[other][layer]:
                (right if equal else false).append((one, other, layer))
            elif equal:
                missed.append((one, other, layer))
    return right, false, missed


def test_equal_domains_mean_equal_keys_and_values(fleet):
    right, false, missed = _compared(fleet)
    assert not false
    assert len(right) > 30, "little is shared, so little is shown"
    assert not missed, "nothing that is shared goes unproven in this fleet"


def _no_sides(monkeypatch):
    found = domains.DomainFinder.domains
    monkeypatch.setattr(domains.DomainFinder, "domains", lambda self, chain: found(self, replace(chain, sides=())))


def _no_layers_below(monkeypatch):
    digest = domains.text_digest
    monkeypatch.setattr(domains, "text_digest", lambda kind, lines: kind if "prefix" in kind else digest(kind, lines))


def _no_structure(monkeypatch):
    def cones(block, prelude):
        tensors = domains.json_digest("tensors", [tensor.digest for tensor in block.tensors.values()])
        attentions = sum(op.target == "blockc.attention" for op in block.structure.ops)
        return domains._BlockCones(whole=tensors, sees_all=False, keys_values=((tensors, frozenset()),) * attentions)

    monkeypatch.setattr(domains, "_block_cones", cones)


def _no_weights(monkeypatch):
    monkeypatch.setattr(domains, "_cone", lambda block, ops, wanted, context: sorted(context.items()))
    monkeypatch.setattr(Block, "parts", property(lambda block: {}))


@pytest.mark.parametrize("forgotten", [_no_sides, _no_layers_below, _no_structure, _no_weights])
def test_domains_that_forget_something_are_caught(forgotten, fleet, monkeypatch):
    forgotten(monkeypatch)
    _, false, _ = _compared(fleet)
    assert false


def test_a_scalar_on_the_way_to_a_key_counts(tmp_path):
    """Two attention ops in one block: the window of the first shows in the keys of the second."""
    base = save_model("llama", tmp_path / "base")
    chains, _, _ = chains_of(deployment(base), tmp_path / "zoo")
    path = chains["base"].path
    kind = ValueType(dtype="F32", shape=(1, 2, "T", 16))
    binds = tuple(f"{name}{index}" for index in range(2) for name in ("scale", "window", "softcap"))
    first, second = (tuple(Bound(name) for name in binds[at : at + 3]) for at in (0, 3))
    structure = Structure(
        inputs=(("x", kind),), contexts=(), binds=binds, params=(), returns=("2",),
        ops=(
            Op(result="0", target="blockc.attention", args=(Value("x"), Value("x"), Value("x"), *first)),
            Op(result="1", target="aten.transpose.int", args=(Value("0"), 1, 2)),
            Op(result="2", target="blockc.attention", args=(Value("1"), Value("1"), Value("1"), *second)),
        ),
    )  # fmt: skip

    def found(window):
        scalars = {name: window if name == "window0" else 1.0 if "scale" in name else None for name in binds}
        block = replace(path.blocks[0], structure=structure, binds=scalars, tensors={}, prelude=None, contexts=())
        twice = replace(path, blocks=(block,), kv_layers=path.kv_layers[:2])
        return kv_domains(replace(chains["base"], path=twice, sides=()))

    assert found(8)[0] == found(None)[0]
    assert found(8)[1] != found(None)[1]
