"""Attention and experts as ops of ours, so that a captured graph may hold the tokens of many requests at once.

transformers routes attention through ``ALL_ATTENTION_FUNCTIONS`` and experts through ``ALL_EXPERTS_FUNCTIONS``; models
that bypass them cannot be traced (BC205). It makes no mask for attention that ``ALL_MASK_ATTENTION_FUNCTIONS`` does not
know. The ops only have fake kernels.
"""

from __future__ import annotations

from typing import Any

import torch

NAME = "blockc"
# Set on modules of models that read a text as a whole: elsewhere attention that is not causal has no meaning.
ENCODES = "_blockc_encodes"

# Keyword arguments that reach an attention function and do not change its result here.
_NEUTRAL = {
    "position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "return_dict",
    "logits_to_keep", "num_items_in_batch", "output_router_logits", "deterministic",
}  # fmt: skip


class UntraceableError(Exception):
    """The model does something that this compiler cannot represent exactly; the text says what."""


# torch.library carries no type information.
_LIBRARY: Any = torch.library.Library("blockc", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "attention(Tensor q, Tensor k, Tensor v, float scale, int? window, float? softcap, Tensor? sinks) -> Tensor"
)
_LIBRARY.define("encode(Tensor q, Tensor k, Tensor v, float scale, int? window, float? softcap) -> Tensor")
_LIBRARY.define("expert_linear(Tensor x, Tensor weight, Tensor? bias, Tensor index, bool transposed) -> Tensor")


@torch.library.register_fake("blockc::attention", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _attention_fake(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])


@torch.library.register_fake("blockc::encode", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _encode_fake(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int | None, softcap: float | None
) -> torch.Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])


@torch.library.register_fake("blockc::expert_linear", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _expert_linear_fake(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, index: torch.Tensor, transposed: bool
) -> torch.Tensor:
    return x.new_empty(*index.shape, weight.shape[2 if transposed else 1])


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Shapes as transformers has them: q ``[1,H,T,D]``, k and v ``[1,K,T,D]`` -> ``[1,T,H,D]``.

    ``s_aux`` ``[H]``: attention sinks, a score beside those of the keys that takes weight and yields nothing.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    strange = sorted(name for name, value_ in rest.items() if value_ is not None and name not in _NEUTRAL)
    if strange or attention_mask is not None:
        raise UntraceableError(f"attention with {', '.join(strange) or 'a mask of its own'}")
    if not causal and (s_aux is not None or not getattr(module, ENCODES, False)):
        raise UntraceableError("attention that is not causal")
    if sliding_window is not None and sliding_window < 1:
        raise UntraceableError(f"a window of {sliding_window} tokens")
    scale = float(query.shape[-1]) ** -0.5 if scaling is None else float(scaling)
    width = value.shape[-1]
    size = max(width, query.shape[-1])
    query, key, value = (_padded(tensor, size) for tensor in (query, key, value))
    if causal:
        out = torch.ops.blockc.attention(query, key, value, scale, sliding_window, softcap, s_aux)
    else:
        out = torch.ops.blockc.encode(query, key, value, scale, sliding_window, softcap)
    return (out if width == size else out[..., :width]), None


def _padded(x: torch.Tensor, size: int) -> torch.Tensor:
    """Zeros behind the last axis: keys and values of one size share a page, and no score or value changes by them."""
    missing = size - x.shape[-1]
    if not missing:
        return x
    return torch.cat([x, torch.zeros_like(x[..., :1]).expand(*x.shape[:-1], missing)], -1)


def _experts(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """``hidden_states [T,F]``, ``top_k_index`` and ``top_k_weights [T,k]`` -> ``[T,F]``.

    Only the products with the chosen experts' matrices are an op of ours; gates, norms and weighting are the model's.
    """
    up, up_bias = ("gate_up_proj", "gate_up_proj_bias") if module.has_gate else ("up_proj", "up_proj_bias")

    def product(x: torch.Tensor, weight: str, bias: str) -> torch.Tensor:
        biases = getattr(module, bias) if module.has_bias else None
        out: torch.Tensor = torch.ops.blockc.expert_linear(
            x, getattr(module, weight), biases, top_k_index, module.is_transposed
        )
        return out

    inner = product(hidden_states, up, up_bias)
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    outer = product(inner, "down_proj", "down_proj_bias")
    if getattr(module, "has_post_expert_norm", False):  # transformers 5.17 knows none
        outer = module.post_expert_norm(outer)
    return (outer * top_k_weights.unsqueeze(-1)).sum(dim=1).to(hidden_states.dtype)


def register() -> None:
    """Make ``attn_implementation="blockc"``, for experts too, known to transformers. Idempotent."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    ALL_EXPERTS_FUNCTIONS.register(NAME, _experts)
