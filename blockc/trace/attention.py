"""Attention as one op of ours, so that a captured graph may hold the tokens of many requests at once.

transformers routes attention through ``ALL_ATTENTION_FUNCTIONS`` and masks through
``ALL_MASK_ATTENTION_FUNCTIONS``; models that bypass them cannot be traced (BC205). The op only has a fake kernel.
"""

from __future__ import annotations

from typing import Any

import torch

NAME = "blockc"

# Keyword arguments that reach an attention function and do not change its result here.
_NEUTRAL = {
    "position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "return_dict",
    "logits_to_keep", "num_items_in_batch",
}  # fmt: skip


class UntraceableError(Exception):
    """The model does something that this compiler cannot represent exactly; the text says what."""


# torch.library carries no type information.
_LIBRARY: Any = torch.library.Library("blockc", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("attention(Tensor q, Tensor k, Tensor v, float scale, int? window, float? softcap) -> Tensor")


@torch.library.register_fake("blockc::attention", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _attention_fake(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int | None, softcap: float | None
) -> torch.Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])


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
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Shapes as transformers has them: q ``[1,H,T,D]``, k and v ``[1,K,T,D]`` -> ``[1,T,H,D]``."""
    strange = sorted(name for name, value_ in rest.items() if value_ is not None and name not in _NEUTRAL)
    if rest.get("is_causal", getattr(module, "is_causal", True)) is False:
        raise UntraceableError("attention that is not causal")
    strange = [name for name in strange if name != "is_causal"]
    if strange or attention_mask is not None:
        raise UntraceableError(f"attention with {', '.join(strange) or 'a mask of its own'}")
    if sliding_window is not None and sliding_window < 1:
        raise UntraceableError(f"a window of {sliding_window} tokens")
    scale = float(query.shape[-1]) ** -0.5 if scaling is None else float(scaling)
    return torch.ops.blockc.attention(query, key, value, scale, sliding_window, softcap), None


def register() -> None:
    """Make ``attn_implementation="blockc"`` known to transformers. Idempotent."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *args, **kwargs: None)
