"""Fine-tunes of any kind as they are saved, with random values large enough that mistakes show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file
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
        for parameter in (model.get_input_embeddings().weight, *(() if head is None else head.parameters())):
            parameter[height:].normal_(0, 0.12)


def save_vectors(base: Path, root: Path) -> Path:
    """BitFit: every bias, and where there is none every norm."""
    torch.manual_seed(5)
    state = AutoModelForCausalLM.from_pretrained(base).state_dict()
    vectors = {name: value for name, value in state.items() if value.ndim == 1}
    biases = {name: value for name, value in vectors.items() if name.endswith(".bias")} or vectors
    root.mkdir()
    save_file(
        {name: value + 0.3 * torch.rand_like(value) for name, value in biases.items()}, root / "model.safetensors"
    )
    return root


def save_full(base: Path, root: Path, *, only: str) -> Path:
    """A full checkpoint: every parameter changed whose name holds ``only``."""
    root.mkdir()
    for file in base.glob("*.json"):
        (root / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(len(only))
    tensors = load_file(base / "model.safetensors")
    changed = {
        name: tensor + 0.02 * torch.randn_like(tensor) if only in name else tensor for name, tensor in tensors.items()
    }
    save_file(changed, root / "model.safetensors", metadata={"format": "pt"})
    return root
