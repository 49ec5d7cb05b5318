"""Checkpoints of integers as AutoAWQ and compressed-tensors write them, made of a plain one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file

# Where AutoAWQ puts the eight half bytes of a word (its GEMM kernels' order).
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def integers(weight: torch.Tensor, group: int, *, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``weight [out, in]`` -> numbers 0 to 15 ``[out, in]``, scales and zeros ``[out, in / group]``."""
    grouped = weight.float().view(len(weight), -1, group)
    if symmetric:
        scale = (grouped.abs().amax(2) / 7).half().float()
        zero = torch.full_like(scale, 8)
    else:
        low, high = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)
        scale = ((high - low) / 15).half().float()
        zero = (-low / scale).round().clamp(0, 15)
    codes = (grouped / scale[..., None]).round().add(zero[..., None]).clamp(0, 15)
    return codes.flatten(1).int(), scale, zero.int()


def stands_for(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """The matrix in float32."""
    grouped = codes.view(len(codes), scale.shape[1], -1)
    return ((grouped - zero[..., None]).float() * scale[..., None]).flatten(1)


def save_awq(plain: Path, root: Path, *, group: int = 32) -> dict[str, torch.Tensor]:
    """AutoAWQ's GEMM format. What the matrices stand for, by name."""
    dense, state = {}, {}
    for name, value in load_file(plain / "model.safetensors").items():
        if not name.endswith("proj.weight"):
            state[name] = value.half()
            continue
        codes, scale, zero = integers(value, group, symmetric=False)
        dense[name] = stands_for(codes, scale, zero)
        module = name.removesuffix("weight")
        state |= {
            f"{module}qweight": _words(codes.t()), f"{module}qzeros": _words(zero.t()),
            f"{module}scales": scale.t().half().contiguous(),
        }  # fmt: skip
    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    _save(plain, root, state, settings | {"modules_to_not_convert": None})
    return dense


def _words(values: torch.Tensor) -> torch.Tensor:
    """``[n, 8 m]`` -> int32 ``[n, m]``."""
    eight = values.reshape(len(values), -1, 8)[..., list(_AWQ_ORDER)].long()
    words = (eight << torch.arange(0, 32, 4)).sum(2)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def save_packed(plain: Path, root: Path, *, group: int = 32, symmetric: bool = True) -> dict[str, torch.Tensor]:
    """compressed-tensors' pack-quantized format. What the matrices stand for, by name."""
    dense, state = {}, {}
    for name, value in load_file(plain / "model.safetensors").items():
        if not name.endswith("proj.weight"):
            state[name] = value
            continue
        codes, scale, zero = integers(value, group, symmetric=symmetric)
        dense[name] = stands_for(codes, scale, zero)
        state[f"{name}_packed"] = pack_to_int32((codes - 8).to(torch.int8), 4)
        state[f"{name}_scale"] = scale
        state[f"{name}_shape"] = torch.tensor(value.shape)
        if not symmetric:
            state[f"{name}_zero_point"] = pack_to_int32((zero - 8).to(torch.int8), 4, packed_dim=0).contiguous()
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group, "symmetric": symmetric}
    settings = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }  # fmt: skip
    _save(plain, root, state, settings)
    return dense


def _save(plain: Path, root: Path, state: dict[str, torch.Tensor], settings: dict[str, object]) -> None:
    shutil.copytree(plain, root)
    save_file(state, root / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
