"""Random models of a given shape with random LoRA adapters, and the spec that serves them: input for benchmarks.

Random weights cost what trained ones cost; this field's benchmarks accept them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Llama shape."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(values out, values in) of a layer's matrices, by module."""
        kv = self.kv_heads * (self.hidden // self.heads)
        attention = {"q": (self.hidden,) * 2, "k": (kv, self.hidden), "v": (kv, self.hidden), "o": (self.hidden,) * 2}
        mlp = {"gate": (self.intermediate, self.hidden), "up": (self.intermediate, self.hidden)}
        mlp["down"] = self.hidden, self.intermediate
        return {f"self_attn.{name}_proj": ends for name, ends in attention.items()} | {
            f"mlp.{name}_proj": ends for name, ends in mlp.items()
        }


SHAPES = {
    # Of Llama 3.1 and 3.2; 246 M and 32 M parameters; next to nothing.
    "8b": Shape(hidden=4096, layers=32, heads=32, kv_heads=8, intermediate=14336, vocab=128256),
    "1b": Shape(hidden=2048, layers=16, heads=32, kv_heads=8, intermediate=8192, vocab=128256),
    "mid": Shape(hidden=1024, layers=16, heads=16, kv_heads=4, intermediate=2816, vocab=32000),
    "small": Shape(hidden=512, layers=8, heads=8, kv_heads=4, intermediate=1408, vocab=8192),
    "tiny": Shape(hidden=64, layers=2, heads=4, kv_heads=2, intermediate=96, vocab=100),
}
# Standard deviation of what a random model's head yields.
LOGITS_SPREAD = 6.0
# Where the modules of a LoRA are, in a checkpoint of PEFT's.
_PEFT = "base_model.model.model.layers"


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
    write_base(root / "base", shape, tied=tied)
    if tuned_layers:
        write_base(root / "f0", shape, tied=tied, tuned_layers=tuned_layers)
    for index in range(adapters):
        write_lora(root / f"a{index}", shape, rank, seed=1 + index)
    device = f"cpu {{ memory = {memory} }}"
    spec.write_text(spec_text(adapters, device=device, dtype=dtype, batching=batching, full=bool(tuned_layers)))
    return spec


def write_base(
    root: Path, shape: Shape, *, tied: bool = False, tuned_layers: int = 0, alike: bool = False, device: str = "cpu"
) -> None:
    """A checkpoint in bfloat16 with its tokenizer. ``tuned_layers``: so many upper layers are changed a little.

    ``alike``: all layers have the same weights, of which a zoo keeps one copy. ``device``: where weights are drawn, the
    same ones each time.
    """
    from transformers import LlamaConfig

    generator = torch.Generator(device).manual_seed(0)

    def drawn(*size: int, spread: float = 0.02) -> torch.Tensor:
        return torch.empty(size, dtype=torch.bfloat16, device=device).normal_(0, spread, generator=generator).cpu()

    # As wide as makes few tokens likely, as trained heads do: what a draw from the likely ones costs depends on that.
    head = drawn(shape.vocab, shape.hidden, spread=LOGITS_SPREAD * shape.hidden**-0.5)
    ones = torch.ones(shape.hidden, dtype=torch.bfloat16)
    embed = head if tied else drawn(shape.vocab, shape.hidden)
    tensors = {"model.embed_tokens.weight": embed, "model.norm.weight": ones.clone()}
    if not tied:
        tensors["lm_head.weight"] = head
    linears: dict[str, torch.Tensor] = {}
    for layer in range(shape.layers):
        if not linears or not alike:
            linears = {f"{name}.weight": drawn(*ends) for name, ends in shape.linears.items()}
        own = {name: tensor.clone() for name, tensor in linears.items()} if alike else dict(linears)
        own |= {f"{name}_layernorm.weight": ones.clone() for name in ("input", "post_attention")}
        for tensor in own.values() if layer >= shape.layers - tuned_layers else ():
            tensor.mul_(1.01)
        tensors |= {f"model.layers.{layer}.{name}": tensor for name, tensor in own.items()}
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
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(root)
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(root, shape.vocab)


def write_lora(root: Path, shape: Shape, rank: int, *, seed: int = 0, device: str = "cpu") -> None:
    """A LoRA on all linears, as PEFT writes it, in bfloat16."""
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for layer in range(shape.layers):
        for name, (out, into) in shape.linears.items():
            for side, size in (("A", (rank, into)), ("B", (out, rank))):
                tensor = torch.empty(size, dtype=torch.bfloat16, device=device).normal_(0, 0.02, generator=generator)
                tensors[f"{_PEFT}.{layer}.{name}.lora_{side}.weight"] = tensor.cpu()
    root.mkdir(parents=True)
    save_file(tensors, root / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank}
    targets = [name.rpartition(".")[2] for name in shape.linears]
    (root / "adapter_config.json").write_text(json.dumps({**config, "target_modules": targets}))


def write_tokenizer(root: Path, vocab: int) -> None:
    """A word-level tokenizer of ``vocab`` words, ``w0`` and so on, with a chat template that adds nothing."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(vocab)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(root / "tokenizer.json"))
    config = {"chat_template": "{% for message in messages %}{{ message['content'] }} {% endfor %}"}
    (root / "tokenizer_config.json").write_text(json.dumps(config))


def compiled_fleet(root: Path, shape: Shape, adapters: int) -> Path:
    """The plan of such a fleet, compiled anew unless it is there."""
    spec = make_fleet(root, shape, adapters=adapters)
    plan = root / "plan.json"
    if not plan.is_file():
        subprocess.run([sys.executable, "-m", "blockc", "compile", str(spec), "-o", str(plan)], check=True)
    return plan


def spec_text(
    adapters: int, *, device: str, dtype: str = "bf16", max_model_len: int = 512, batching: str = "", full: bool = False
) -> str:
    """A spec of the base and its fine-tunes on one ``device``, such as ``cpu { memory = 12GiB }``."""
    lines = [
        "blockc { edition = 1 }",
        f'base b : hf("./base") {{ dtype = {dtype}  max_model_len = {max_model_len} }}',
        f"cluster box {{ node local {{ device d0 : {device} }} }}",
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
