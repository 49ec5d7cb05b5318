"""What whoever loads an adapter with added tokens must do before PEFT does: resize the model's vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open


def resize(model: Any, adapter: Path) -> None:
    """Give the model the vocabulary of an adapter. Rows that this adds are random: it is the adapter that sets them."""
    size = resized(model, adapter)
    if size is not None:
        model.resize_token_embeddings(size, mean_resizing=False)


def resized(model: Any, adapter: Path) -> int | None:
    """The vocabulary of an adapter that holds another one than the model's; None if it is the same."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    modules = [name for name, module in model.named_modules() if any(module is end for end in ends)]
    present, whole = ends[0].weight.shape[0], 0
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as handle:
        for name in handle.keys():  # noqa: SIM118 - not a mapping
            module, _, part = name.removeprefix("base_model.model.").rpartition(".")
            is_whole = part == "weight" and ".lora_" not in module
            if is_whole and any(module == end or module.startswith(f"{end}.") for end in modules):
                whole = max(whole, handle.get_slice(name).get_shape()[0])
    size = whole or max(present, 1 + _last_token(adapter))
    return size if size != present else None


def _last_token(adapter: Path) -> int:
    """The highest id of which the adapter trained the row; -1 if there is none."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    rows = config.get("trainable_token_indices") or config.get("token_indices") or []
    return max((token for own in (rows.values() if isinstance(rows, dict) else [rows]) for token in own), default=-1)
