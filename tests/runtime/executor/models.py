"""Tiny transformers models and the same models as blocks."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from blockc.ir import DTYPE_CODE
from blockc.plan import KvLayerEntry
from tests.runtime.executor import structures
from tests.runtime.executor.plans import BlockSpec, ModelSpec


def make_llama(seed: int = 0, dtype: torch.dtype = torch.float32, layers: int = 3) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,  # so that logits differ by more than rounding
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def make_gpt2(seed: int = 0, dtype: torch.dtype = torch.float32, *, heads: int = 3) -> Any:
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=89, n_embd=48, n_head=heads, n_layer=3, n_positions=128, initializer_range=0.3)
    return GPT2LMHeadModel(config).to(dtype).eval()


def llama_spec(model: Any, *, window: int | None = None, cuts: tuple[int, ...] = ()) -> ModelSpec:
    config = model.config
    hidden, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    size, eps = hidden // heads, config.rms_norm_eps
    state = dict(model.state_dict())
    dtype = state["lm_head.weight"].dtype
    code = DTYPE_CODE[str(dtype).removeprefix("torch.")]
    binds: dict[str, float | int | None] = {
        "scale": size**-0.5,
        "window": window,
        "softcap": None,
    }
    blocks = [
        BlockSpec(
            structure=structures.llama_embed(config.vocab_size, hidden, code),
            tensors={"embed_tokens.weight": state["model.embed_tokens.weight"]},
        )
    ]
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}."
        blocks.append(
            BlockSpec(
                structure=structures.llama_attention(hidden, heads, kv_heads, size, eps, code),
                tensors={"norm": state[layer + "input_layernorm.weight"]}
                | {f"{n}_proj": state[f"{layer}self_attn.{n}_proj.weight"] for n in "qkvo"},
                binds=binds,
                has_context=True,
            )
        )
        blocks.append(
            BlockSpec(
                structure=structures.llama_mlp(hidden, config.intermediate_size, eps, code),
                tensors={"norm": state[layer + "post_attention_layernorm.weight"]}
                | {f"{n}_proj": state[f"{layer}mlp.{n}_proj.weight"] for n in ("gate", "up", "down")},
            )
        )
    blocks.append(
        BlockSpec(
            structure=structures.llama_head(config.vocab_size, hidden, eps, code),
            tensors={"norm": state["model.norm.weight"], "lm_head": state["lm_head.weight"]},
        )
    )
    inv_freq = model.model.rotary_emb.inv_freq.float()
    return ModelSpec(
        blocks=tuple(blocks),
        prelude=BlockSpec(structure=structures.llama_prelude(size // 2, code), tensors={"inv_freq": inv_freq}),
        kv=(KvLayerEntry(kv_heads=kv_heads, head_dim=size, window=window, dtype=code),) * config.num_hidden_layers,
        dtype=dtype,
        vocab=config.vocab_size,
        max_len=config.max_position_embeddings,
        cuts=cuts,
    )


def gpt2_spec(model: Any, *, cuts: tuple[int, ...] = ()) -> ModelSpec:
    config = model.config
    hidden, heads, eps = config.n_embd, config.n_head, config.layer_norm_epsilon
    state = dict(model.state_dict())
    dtype = state["lm_head.weight"].dtype
    code = DTYPE_CODE[str(dtype).removeprefix("torch.")]
    blocks = [
        BlockSpec(
            structure=structures.gpt2_embed(config.vocab_size, config.n_positions, hidden, code),
            tensors={
                "wte": state["transformer.wte.weight"],
                "wpe": state["transformer.wpe.weight"],
            },
        )
    ]
    for i in range(config.n_layer):
        layer = f"transformer.h.{i}."
        tensors = {name: state[layer + name] for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias")}
        weights = state[layer + "attn.c_attn.weight"].t().contiguous().chunk(3)
        biases = state[layer + "attn.c_attn.bias"].chunk(3)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            tensors |= {f"{name}.weight": weight, f"{name}.bias": bias}
        for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            tensors[f"{name}.weight"] = state[f"{layer}{name}.weight"].t().contiguous()
            tensors[f"{name}.bias"] = state[f"{layer}{name}.bias"]
        blocks.append(
            BlockSpec(
                structure=structures.gpt2_layer(hidden, heads, eps, code),
                tensors=tensors,
                binds={"scale": (hidden // heads) ** -0.5},
            )
        )
    blocks.append(
        BlockSpec(
            structure=structures.gpt2_head(config.vocab_size, hidden, eps, code),
            tensors={
                "ln_f.weight": state["transformer.ln_f.weight"],
                "ln_f.bias": state["transformer.ln_f.bias"],
                "wte": state["lm_head.weight"],
            },
        )
    )
    return ModelSpec(
        blocks=tuple(blocks),
        prelude=None,
        kv=(KvLayerEntry(kv_heads=heads, head_dim=hidden // heads, window=None, dtype=code),) * config.n_layer,
        dtype=dtype,
        vocab=config.vocab_size,
        max_len=config.n_positions,
        cuts=cuts,
    )
