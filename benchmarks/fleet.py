"""Random models of a given shape with random LoRA adapters, and the spec that serves them: input for benchmarks.

Random weights cost what trained ones cost; this field's benchmarks accept them.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Llama shape."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int


SHAPES = {
    # 246 M and 32 M parameters.
    "mid": Shape(hidden=1024, layers=16, heads=16, kv_heads=4, intermediate=2816, vocab=32000),
    "small": Shape(hidden=512, layers=8, heads=8, kv_heads=4, intermediate=1408, vocab=8192),
}


def make_fleet(
    root: Path,
    shape: Shape,
    *,
    adapters: int,
    rank: int = 16,
    memory: str = "12GiB",
    dtype: str = "bf16",
    tied: bool = False,
    tuned_layers: int = 0,
    batching: str = "",
) -> Path:
    """Write a base, its adapters and ``fleet.blk`` under ``root``; returns the spec. Does nothing if it is there.

    ``tuned_layers``: how many upper layers a full fine-tune ``f0`` changes; 0: there is none.
    """
    spec = root / "fleet.blk"
    if spec.is_file():
        return spec
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocab,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(root / "base")
    write_tokenizer(root / "base", shape.vocab)
    if tuned_layers:
        with torch.no_grad():
            for layer in model.model.layers[-tuned_layers:]:
                for parameter in layer.parameters():
                    parameter.mul_(1.01)
        model.save_pretrained(root / "f0")
        write_tokenizer(root / "f0", shape.vocab)
    tuned = get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LINEARS, task_type="CAUSAL_LM")
    ).to(torch.bfloat16)
    for index in range(adapters):
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.02)
        tuned.save_pretrained(root / f"a{index}")
    spec.write_text(_spec(adapters, memory, dtype, batching, full=bool(tuned_layers)))
    return spec


def write_tokenizer(root: Path, vocab: int) -> None:
    """A word-level tokenizer of ``vocab`` words: the benchmarks send token ids, but a server wants a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(vocab)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(root / "tokenizer.json"))


def compiled_fleet(root: Path, shape: Shape, adapters: int) -> Path:
    """The plan of such a fleet, compiled anew unless it is there."""
    spec = make_fleet(root, shape, adapters=adapters)
    plan = root / "plan.json"
    if not plan.is_file():
        blockc = Path(sys.executable).parent / "blockc"
        subprocess.run([blockc, "compile", str(spec), "-o", str(plan)], check=True)
    return plan


def _spec(adapters: int, memory: str, dtype: str, batching: str, *, full: bool) -> str:
    lines = [
        "blockc { edition = 1 }",
        f'base b : hf("./base") {{ dtype = {dtype}  max_model_len = 512 }}',
        f"cluster box {{ node local {{ device d0 : cpu {{ memory = {memory} }} }} }}",
        "tenant t {",
        "  app base { model = b }",
    ]
    for index in range(adapters):
        lines.insert(2, f'finetune a{index} : b {{ weights = "./a{index}" }}')
        lines.append(f"  app a{index} {{ model = a{index} }}")
    if full:
        lines.insert(2, 'finetune f0 : b { weights = "./f0" }')
        lines.append("  app f0 { model = f0 }")
    if batching:
        lines.insert(1, f"policy {{ batching {{ {batching} }} }}")
    return "\n".join([*lines, "}", ""])
