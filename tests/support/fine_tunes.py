"""Adapters of any kind as PEFT writes them, with random values large enough that mistakes show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from transformers import AutoModelForCausalLM

_AROUND_ONE = ("ia3_l", "magnitude", "norm", "ln_")  # what multiplies


def save_adapter(
    base: Path,
    root: Path,
    config: PeftConfig,
    *,
    seed: int = 0,
    vocabulary: int | None = None,
    model: Any = None,
    **saving: Any,
) -> Path:
    """A random adapter of the base by its configuration; ``vocabulary``: the base is resized to it before.

    ``saving``: options of PEFT's `save_pretrained`.
    """
    torch.manual_seed(seed)
    if model is None:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if vocabulary is not None:
        _resize(model, vocabulary)
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if not parameter.requires_grad:
                continue
            if any(part in name for part in _AROUND_ONE):
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
            elif parameter.ndim == 1 or "tokens_delta" in name or "prompt" in name:
                parameter.normal_(0, 0.3)
            else:
                parameter.normal_(0, 0.1)
    tuned.save_pretrained(root, **saving)
    return root


def _resize(model: Any, vocabulary: int) -> None:
    """With rows for added tokens that are as large as those of others."""
    height = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(vocabulary)
    head = model.get_output_embeddings()
    with torch.no_grad():
        for parameter in (model.get_input_embeddings().weight, *head.parameters()):
            parameter[height:].normal_(0, 0.12)
