"""A tiny configuration of any text-generation architecture of transformers, and random models of it.

Sizes are shrunk by the names that configurations give them; what an architecture demands beyond that stands in
``_SPECIAL``. Layers are few, but of all kinds that the architecture has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from blockc.trace import Head
from blockc.trace.capture import build_meta_model
from blockc.trace.layers import find_layers
from blockc.trace.model import TOKENS

VOCABULARY = 128
POSITIONS = 96

_HEADS, _KV_HEADS, _HEAD_SIZE, _HIDDEN, _INNER, _LAYERS = 4, 2, 16, 64, 96, 4
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_SIZES: dict[str, int] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "embed_dim", "word_embed_proj_dim", "embedding_size", "dim"), _HIDDEN
    ),
    **dict.fromkeys(("intermediate_size", "intermediate_size_mlp", "ffn_dim", "ffn_hidden_size", "n_inner"), _INNER),
    **dict.fromkeys(_LAYER_COUNTS, _LAYERS),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "swa_num_attention_heads"), _HEADS
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads", "swa_num_key_value_heads"), _KV_HEADS),
    **dict.fromkeys(
        ("head_dim", "swa_head_dim", "query_pre_attn_scalar", "v_head_dim", "qk_nope_head_dim"), _HEAD_SIZE
    ),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), _HEAD_SIZE // 2),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), POSITIONS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("num_shared_experts", "n_shared_experts", "n_group", "topk_group", "first_k_dense_replace"), 1),
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
    "sliding_window": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Fields that say by None that something is switched off.
_OFF = ("head_dim", "sliding_window", "q_lora_rank", "n_inner", "num_experts", "num_local_experts", "pad_token_id")
_ALL_HEADS = {"num_key_value_heads": _HEADS}
_SPECIAL: dict[str, dict[str, Any]] = {
    "deepseek_v3": _ALL_HEADS,
    "glm4_moe_lite": _ALL_HEADS,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gemma3_text": {"sliding_window_pattern": 3},
    "hunyuan_v1_dense": {"head_dim": _HEAD_SIZE},
    "hunyuan_v1_moe": {"head_dim": _HEAD_SIZE},
    "ministral": {"head_dim": _HEAD_SIZE},
    "minicpm3": _ALL_HEADS,
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "qwen3": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "youtu": _ALL_HEADS,
}


def is_composite(model_type: str) -> bool:
    """Whether the configuration holds others (of images, speech, or several models)."""
    return bool(getattr(CONFIG_MAPPING[model_type], "sub_configs", None))


def tiny_config(model_type: str, *, layers: int = _LAYERS, **fields: Any) -> PreTrainedConfig:
    """``layers``: fewer than the usual take less time to trace, where not all kinds of them are needed."""
    kind = CONFIG_MAPPING[model_type]
    default = kind()
    chosen: dict[str, Any] = {}
    for name, size in _SIZES.items():
        if name in kind.attribute_map or not hasattr(default, name) or isinstance(getattr(kind, name, None), property):
            continue
        value = getattr(default, name)
        if isinstance(value, bool | list | tuple | dict) or (value is None and name in _OFF):
            continue
        if name == "head_dim" and hasattr(default, "qk_rope_head_dim"):
            continue  # follows from the two parts of a head
        chosen[name] = layers if name in _LAYER_COUNTS else size
    return kind(**{**chosen, **_SPECIAL.get(model_type, {}), **fields})


def copied_layers(config: PreTrainedConfig, head: Head = TOKENS) -> int:
    """How many layers tracing does not capture."""
    plan = find_layers(build_meta_model(config, torch.float32, head))
    assert plan is not None
    return len(plan.kind_of) - len(plan.representatives)


def random_model(config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """In float32, with weights large enough that mistakes show in the logits."""
    torch.manual_seed(seed)
    return randomize(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())


def randomize(model: PreTrainedModel) -> PreTrainedModel:
    """Matrices, biases and routers' biases; norms stay as they are."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "norm" not in name.lower() and "ln_" not in name:
                parameter.normal_(0, 0.2)
            elif parameter.ndim > 1:
                parameter.normal_(0, 0.12)
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):
                buffer.normal_(0, 0.2)
    return model


def save_random_model(model_type: str, root: Path, *, seed: int = 0, **fields: Any) -> Path:
    random_model(tiny_config(model_type, **fields), seed=seed).save_pretrained(root)
    return root
