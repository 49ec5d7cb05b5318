"""From your own Hugging Face checkpoint and PEFT adapter to a verified plan.

Here both are tiny and random, made on the spot; put your directories in their place.

python examples/04_bring_your_own.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config

SPEC = """
blockc { edition = 1 }
base qwen : hf("./qwen") { dtype = fp32  max_model_len = 128 }
finetune support : qwen { weights = "./support" }
cluster box { node local { device d0 : cpu { memory = 512MiB } } }
tenant acme { app support { model = support }  app plain { model = qwen } }
"""


def make_models(folder: Path) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / "qwen")
    adapter = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapter.save_pretrained(folder / "support")


def main() -> None:
    blockc = [sys.executable, "-m", "blockc"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder)
        (folder / "fleet.blk").write_text(SPEC)
        subprocess.run([*blockc, "check", str(folder / "fleet.blk")], check=True)
        subprocess.run([*blockc, "compile", str(folder / "fleet.blk"), "-o", str(folder / "plan.json")], check=True)
        subprocess.run([*blockc, "verify", str(folder / "plan.json"), "--prompts", "8"], check=True)


if __name__ == "__main__":
    main()
