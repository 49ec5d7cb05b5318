"""What transformers does with a checkpoint of an architecture: read off the model on the meta device, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

# Architectures of checkpoints that are taken for the model below their head.
WITH_UNUSED_HEADS = ("ForMaskedLM", "ForPreTraining")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """The rules by which a checkpoint's tensors become parameters.

    ``shapes``: of every parameter and stored buffer, by full name. ``tied`` maps a parameter to the one it repeats
    where the checkpoint lacks it. ``ignored`` are regular expressions of names that transformers drops for this
    architecture. ``prefix`` is what base-model checkpoints (GPT-2's) leave out of names. ``transforms`` are
    transformers' own renamings and conversions (fused experts, split projections), in order; some of them read
    ``config``.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]
    ignored: tuple[str, ...]
    prefix: str
    transforms: tuple[Any, ...]
    config: Any


def loading_of(model: nn.Module) -> Loading:
    """The rules for a transformers model, in full: before its layers are cut down."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    ignored = set(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    # Buffers that old checkpoints hold and that transformers computes (`_adjust_missing_and_unexpected_keys`).
    for name in ("rotary_emb.inv_freq", "position_ids"):
        if any(buffer.endswith(name) for buffer, _ in model.named_buffers()):
            ignored.add(rf"(^|\.){re.escape(name)}$")
    prefix = str(getattr(model, "base_model_prefix", ""))
    saved_as = (getattr(model.config, "architectures", None) or [type(model).__name__])[0]
    if saved_as.endswith(WITH_UNUSED_HEADS) and not hasattr(model, prefix):
        ignored.add(rf"^(?!{re.escape(prefix)}\.)")  # `AutoModel` of such a checkpoint leaves its head out
    return Loading(
        shapes={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        tied=dict(getattr(model, "all_tied_weights_keys", None) or {}),
        ignored=tuple(sorted(ignored)),
        prefix=prefix,
        transforms=tuple(get_model_conversion_mapping(model)),
        config=model.config,
    )
