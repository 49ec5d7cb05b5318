"""LoRA adapters as PEFT writes them, with random matrices large enough that mistakes show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

LLAMA_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_lora(base: Path, root: Path, *, seed: int = 0, **settings: Any) -> Path:
    """Save a random adapter of the base."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options = {"r": 4, "lora_alpha": 8, "target_modules": LLAMA_LINEARS, "task_type": "CAUSAL_LM"} | settings
    peft_model = get_peft_model(model, LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    peft_model.save_pretrained(root)
    return root


def configure(adapter: Path, **fields: Any) -> None:
    """Write fields into an adapter's configuration."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
