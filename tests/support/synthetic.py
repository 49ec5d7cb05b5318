"""Chains without weights: Llama-shaped structures bound to tensors with made-up digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from blockc.compiler import together
from blockc.diag import Diagnostics
from blockc.graph import Block, Chain, KvLayerShape, ModelPath
from blockc.ir import Side, Site, Structure, TensorRef, low_rank, parse_structure
from blockc.lower import lower
from blockc.place import place, place_problem
from blockc.plan import ExecutionPlan, verify_plan
from blockc.unify import unify
from tests.support.deployments import deployment

HIDDEN, KV, INNER, VOCAB, HEAD_DIM = 4096, 1024, 14336, 128256, 128
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN, KV), "self_attn.v_proj": (HIDDEN, KV),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (HIDDEN, INNER), "mlp.up_proj": (HIDDEN, INNER),
    "mlp.down_proj": (INNER, HIDDEN),
}  # fmt: skip

_PRELUDE = """structure v1
input positions: I64[1,T]
param inv_freq: F32[64]
%0 = aten.unsqueeze.default(%positions, 2)
%1 = aten.to.dtype(%0, #F32)
%2 = aten.mul.Tensor(%1, @inv_freq)
%3 = aten.cat.default([%2, %2], 2)
%4 = aten.cos.default(%3)
%5 = aten.to.dtype(%4, #BF16)
%6 = aten.unsqueeze.default(%5, 1)
return %6
"""
_EMBED = f"""structure v1
input tokens: I64[1,T]
param model.embed_tokens.weight: BF16[{VOCAB},{HIDDEN}]
%0 = blockc.embedding(%tokens, @model.embed_tokens.weight, "model.embed_tokens")
return %0
"""
_ATTENTION = f"""structure v1
input x: BF16[1,T,{HIDDEN}]
context c0: BF16[1,1,T,{HEAD_DIM}]
bind scale0
bind window0
bind softcap0
param input_layernorm.weight: BF16[{HIDDEN}]
param self_attn.q_proj.weight: BF16[{HIDDEN},{HIDDEN}]
param self_attn.k_proj.weight: BF16[{KV},{HIDDEN}]
param self_attn.v_proj.weight: BF16[{KV},{HIDDEN}]
param self_attn.o_proj.weight: BF16[{HIDDEN},{HIDDEN}]
%0 = blockc.rms_norm(%x, @input_layernorm.weight, 0x1.0c6f7a0b5ed8dp-20)
%1 = blockc.linear(%0, @self_attn.q_proj.weight, none, "self_attn.q_proj")
%2 = aten.reshape.default(%1, [1, T, 32, {HEAD_DIM}])
%3 = aten.transpose.int(%2, 1, 2)
%4 = blockc.linear(%0, @self_attn.k_proj.weight, none, "self_attn.k_proj")
%5 = aten.reshape.default(%4, [1, T, 8, {HEAD_DIM}])
%6 = aten.transpose.int(%5, 1, 2)
%7 = blockc.linear(%0, @self_attn.v_proj.weight, none, "self_attn.v_proj")
%8 = aten.reshape.default(%7, [1, T, 8, {HEAD_DIM}])
%9 = aten.transpose.int(%8, 1, 2)
%10 = aten.mul.Tensor(%3, %c0)
%11 = aten.mul.Tensor(%6, %c0)
%12 = blockc.attention(%10, %11, %9, $scale0, $window0, $softcap0)
%13 = aten.reshape.default(%12, [1, T, {HIDDEN}])
%14 = blockc.linear(%13, @self_attn.o_proj.weight, none, "self_attn.o_proj")
%15 = aten.add.Tensor(%x, %14)
return %15
"""
_MLP = f"""structure v1
input x: BF16[1,T,{HIDDEN}]
param post_attention_layernorm.weight: BF16[{HIDDEN}]
param mlp.gate_proj.weight: BF16[{INNER},{HIDDEN}]
param mlp.up_proj.weight: BF16[{INNER},{HIDDEN}]
param mlp.down_proj.weight: BF16[{HIDDEN},{INNER}]
%0 = blockc.rms_norm(%x, @post_attention_layernorm.weight, 0x1.0c6f7a0b5ed8dp-20)
%1 = blockc.linear(%0, @mlp.gate_proj.weight, none, "mlp.gate_proj")
%2 = aten.silu.default(%1)
%3 = blockc.linear(%0, @mlp.up_proj.weight, none, "mlp.up_proj")
%4 = aten.mul.Tensor(%2, %3)
%5 = blockc.linear(%4, @mlp.down_proj.weight, none, "mlp.down_proj")
%6 = aten.add.Tensor(%x, %5)
return %6
"""
_HEAD = f"""structure v1
input x: BF16[1,T,{HIDDEN}]
param model.norm.weight: BF16[{HIDDEN}]
param lm_head.weight: BF16[{VOCAB},{HIDDEN}]
%0 = blockc.select_rows(%x)
%1 = blockc.rms_norm(%0, @model.norm.weight, 0x1.0c6f7a0b5ed8dp-20)
%2 = blockc.linear(%1, @lm_head.weight, none, "lm_head")
return %2
"""
PRELUDE, EMBED, ATTENTION, MLP, HEAD = map(parse_structure, (_PRELUDE, _EMBED, _ATTENTION, _MLP, _HEAD))

# Says whose weights a parameter has, given its full name: two models that name one owner share the tensor.
Owner = Callable[[str], str]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def tensor(name: str, shape: Sequence[int], dtype: str = "BF16") -> TensorRef:
    return TensorRef(digest=digest(name), dtype=dtype, shape=tuple(shape))


def path(owner: Owner, *, layers: int, window: int | None = None, rope: str = "rope") -> ModelPath:
    """A model whose parameter ``name`` holds the weights of ``owner(name)``."""
    prelude = Block(
        structure=PRELUDE, binds={}, tensors={"inv_freq": tensor(rope, (64,), "F32")}, prelude=None, contexts=()
    )
    blocks = [_block(EMBED, "", owner, None)]
    prefixes = ["", *(f"model.layers.{layer}." for layer in range(layers) for _ in range(2)), ""]
    binds = {"scale0": HEAD_DIM**-0.5, "window0": window, "softcap0": None}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        blocks += [_block(ATTENTION, prefix, owner, prelude, binds), _block(MLP, prefix, owner, None)]
    blocks.append(_block(HEAD, "", owner, None))
    return ModelPath(
        blocks=tuple(blocks),
        prelude=prelude,
        kv_layers=(KvLayerShape(kv_heads=8, head_dim=HEAD_DIM, window=window, dtype="BF16"),) * layers,
        first_kv_layer=tuple((occurrence // 2) if occurrence else 0 for occurrence in range(2 * layers + 2)),
        sites=tuple(
            {prefix + site: site for site in block.structure.sites}
            for prefix, block in zip(prefixes, blocks, strict=True)
        ),
        dtype="BF16",
        vocab_size=VOCAB,
        max_model_len=8192,
        prefixes=tuple(prefixes),
    )


def _block(
    structure: Structure,
    prefix: str,
    owner: Owner,
    prelude: Block | None,
    binds: dict[str, float | int | None] | None = None,
) -> Block:
    return Block(
        structure=structure,
        binds=binds or {},
        tensors={
            name: tensor(f"{owner(prefix + name)}/{prefix}{name}", [size for size in kind.shape if type(size) is int])
            for name, kind in structure.params
        },
        prelude=None if prelude is None else prelude.digest,
        contexts=(0,) if prelude is not None else (),
    )


def lora(
    name: str, *, layers: Sequence[int], targets: Sequence[str] = tuple(LINEARS), rank: int = 16
) -> tuple[Side, ...]:
    """A LoRA with matrices of its own at some linears of some layers."""
    sides = [
        Side(
            site=Site(occurrence=1 + 2 * layer + site.startswith("mlp"), name=site),
            terms=(
                low_rank(
                    tensor(f"{name}/{layer}/{site}/a", (rank, LINEARS[site][0])),
                    tensor(f"{name}/{layer}/{site}/b", (LINEARS[site][1], rank)),
                    2.0,
                ),
            ),
        )
        for layer in layers
        for site in targets
    ]
    return tuple(sorted(sides, key=lambda side: side.site))


def chain(own: ModelPath, sides: tuple[Side, ...] = ()) -> Chain:
    assets = {name: digest(name) for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json")}
    return Chain(path=own, sides=sides, assets=assets, stop_token_ids=(2,))


@cache
def base_path(base: int, layers: int) -> ModelPath:
    return path(lambda name: f"base{base}", layers=layers)


def lora_fleet(
    *,
    apps: int,
    bases: int = 10,
    layers: int = 32,
    first_layer: Callable[[int], int] = lambda app: 0,
    targets: Sequence[str] = tuple(LINEARS),
) -> dict[str, Chain]:
    """Apps with LoRAs on some linears of their layers from ``first_layer(app)`` on, the bases taking turns."""
    return {
        f"app{app}": chain(
            base_path(app % bases, layers), lora(f"lora{app}", layers=range(first_layer(app), layers), targets=targets)
        )
        for app in range(apps)
    }


class BlobsOnly:
    """Stands in for a zoo where only manifests are stored: keeps them in memory."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def put_blob(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        self.blobs[name] = data
        return name


def plan_of(
    models: Mapping[str, Chain],
    *,
    parents: Mapping[str, str | None],
    apps: Mapping[str, Mapping[str, str]],
    zoo: BlobsOnly | None = None,
) -> ExecutionPlan:
    """Unify, place and lower chains as the compiler does. ``parents``: None for a base; ``apps`` by tenant."""
    bases = [name for name, parent in parents.items() if parent is None]
    spec = deployment(
        Path("base"),
        {name: (parent, Path(name)) for name, parent in parents.items() if parent is not None},
        apps=apps,
        memory_bytes=1 << 42,
    )
    spec = replace(spec, bases={name: replace(spec.bases["base"], name=name) for name in bases})
    graph = unify({app.model: models[app.model] for app in spec.apps}, together=together(spec))
    diags = Diagnostics()
    problem = place_problem(spec, graph)
    placement = place(problem, diags=diags)
    assert placement is not None, list(diags)
    kinds = {name: "base" if name in bases else "lora" if models[name].sides else "full" for name in parents}
    files: Any = {name: SimpleNamespace(kind=kind, directory=Path(name)) for name, kind in kinds.items()}
    store: Any = zoo or BlobsOnly()
    plan = lower(spec, files, graph, placement, target="cpu", rates_of=problem.rates_of, parameters={}, zoo=store)
    verify_plan(plan)
    return plan


def fleet_plan(fleet: Mapping[str, Chain], *, bases: int = 10) -> ExecutionPlan:
    """A plan of a `lora_fleet`: one tenant, an app for each chain."""
    parents = {f"base{index}": None for index in range(bases)} | {
        name: f"base{index % bases}" for index, name in enumerate(fleet)
    }
    return plan_of(fleet, parents=parents, apps={"acme": {name: name for name in fleet}})
