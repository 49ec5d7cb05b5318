"""A Llama base and its LoRAs as GGUF files, which llama.cpp reads: version 3 of the format, in little-endian order.

Fields and names are those of llama.cpp's own converters (``convert_hf_to_gguf.py``, ``convert_lora_to_gguf.py``).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.fleet import Shape

Field = str | int | float | Sequence[str] | Sequence[float]
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

_TENSOR_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
_FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32}
_ALIGNMENT_BYTES = 32
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_base(root: Path, shape: Shape, dtype: str, out: Path) -> Path:
    """The checkpoint in ``root`` with matrices as ``dtype`` and vectors in float32; returns ``out``."""
    config = json.loads((root / "config.json").read_text())
    fields: dict[str, Field] = {
        "general.architecture": "llama",
        "general.file_type": _FILE_TYPES[dtype],
        "llama.block_count": shape.layers,
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": shape.hidden,
        "llama.feed_forward_length": shape.intermediate,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "llama.rope.dimension_count": shape.hidden // shape.heads,
        "llama.rope.freq_base": float(_theta(config)),
        "llama.vocab_size": shape.vocab,
        # Words that nothing is split into: prompts are token ids.
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [f"w{index}" for index in range(shape.vocab)],
        "tokenizer.ggml.scores": [0.0] * shape.vocab,
    }
    tensors = {}
    for name, tensor in load_file(root / "model.safetensors").items():
        module = name.removesuffix(".weight")
        made = reordered(module, tensor, shape).to(DTYPES[dtype] if tensor.ndim > 1 else torch.float32)
        tensors[f"{_named(module)}.weight"] = made
    write(out, fields, tensors)
    return out


def write_lora(root: Path, shape: Shape, dtype: str, out: Path) -> Path:
    """PEFT's adapter in ``root`` with its matrices as ``dtype``; returns ``out``."""
    config = json.loads((root / "adapter_config.json").read_text())
    fields: dict[str, Field] = {
        "general.type": "adapter",
        "general.architecture": "llama",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(config["lora_alpha"]),
    }
    tensors = {}
    for name, tensor in load_file(root / "adapter_model.safetensors").items():
        module, _, side = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        made = reordered(module, tensor, shape) if side == "B" else tensor
        tensors[f"{_named(module)}.weight.lora_{side.lower()}"] = made.to(DTYPES[dtype])
    write(out, fields, tensors)
    return out


def write(out: Path, fields: Mapping[str, Field], tensors: Mapping[str, torch.Tensor]) -> None:
    """A file of ``fields`` and ``tensors``, which are float32, float16 or bfloat16."""
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(fields))]
    head += [_text(name) + _field(value) for name, value in fields.items()]
    begin = 0
    for name, tensor in tensors.items():
        sizes = list(reversed(tensor.shape))  # the one that is contiguous comes first
        head.append(_text(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
        head.append(struct.pack("<IQ", _TENSOR_TYPES[tensor.dtype], begin))
        begin += tensor.nbytes + _padding(tensor.nbytes)
    with out.open("wb") as file:
        file.write(b"".join(head))
        file.write(bytes(_padding(file.tell())))
        for tensor in tensors.values():
            file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())
            file.write(bytes(_padding(tensor.nbytes)))


def _named(module: str) -> str:
    if module in _ENDS:
        return _ENDS[module]
    layer, _, linear = module.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_NAMES[linear]}"


def reordered(module: str, tensor: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Rows of queries and keys so that RoPE turns neighbours, as llama.cpp has it, and not the halves of a head."""
    heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(module.rpartition(".")[2])
    if heads is None:
        return tensor
    return tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)


def _theta(config: Mapping[str, object]) -> float:
    """Where it is has changed between versions of transformers."""
    parameters = config.get("rope_parameters")
    found = parameters.get("rope_theta") if isinstance(parameters, dict) else config.get("rope_theta")
    if not isinstance(found, int | float):
        raise ValueError("config.json: no rope_theta")
    return found


def _padding(size: int) -> int:
    return -size % _ALIGNMENT_BYTES


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _field(value: Field) -> bytes:
    """Its type, and itself; numbers without a fraction are unsigned with 32 bits."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    data = [_text(item) if isinstance(item, str) else struct.pack("<f", item) for item in value]
    return struct.pack("<IIQ", 9, 8 if isinstance(value[0], str) else 6, len(data)) + b"".join(data)
