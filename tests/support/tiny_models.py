"""Tiny random models in Hugging Face layout, seeded, made on the spot."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
)

_ROPE = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_ROPE),
    "llama-tied": LlamaConfig(**_ROPE, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**_ROPE),
    "mistral": MistralConfig(**_ROPE, sliding_window=24),
    "gpt2": GPT2Config(vocab_size=128, n_embd=64, n_layer=4, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2),
    "phi": PhiConfig(**_ROPE),  # a head with a bias
    "opt": OPTConfig(
        vocab_size=128, hidden_size=64, ffn_dim=96, num_hidden_layers=3, num_attention_heads=4, word_embed_proj_dim=64,
        max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ),
}  # fmt: skip


def save_model(name: str, root: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save a random model of a named configuration; weights large enough that mistakes show in the logits."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).to(dtype)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "norm" not in parameter_name and "ln_" not in parameter_name:
                parameter.normal_(0, 0.2)
            elif parameter.ndim == 2:
                parameter.normal_(0, 0.12)
    model.save_pretrained(root)
    return root
