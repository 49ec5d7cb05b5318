"""Checkpoints of integers for the reference, by transformers and compressed-tensors, without `blockc.tune`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def method_of(config: Mapping[str, Any]) -> str | None:
    """`quant_method` of a config.json."""
    settings = config.get("quantization_config")
    return settings.get("quant_method") if isinstance(settings, dict) else None


def decompressed() -> Any:
    """How `from_pretrained` is told to make matrices of what compressed-tensors packed."""
    from transformers import CompressedTensorsConfig

    takes = inspect.signature(CompressedTensorsConfig).parameters
    return CompressedTensorsConfig(**({"dequantize": True} if "dequantize" in takes else {"run_compressed": False}))


def awq_model(loader: Any, directory: Path, dtype: torch.dtype, **options: Any) -> Any:
    """A model of what AWQ's words stand for: transformers itself would want a GPU to load them."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory)
    settings = config.quantization_config
    converter = AutoAWQConverter.from_autoawq_config(settings if isinstance(settings, dict) else settings.to_dict())
    state = converter.process(
        {name: tensor for file in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    )
    scheme = next(iter(converter.update_config(None).config_groups.values()))
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    for module in [name.removesuffix(".weight_packed") for name in state if name.endswith(".weight_packed")]:
        ends = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")
        parts = {end: state.pop(f"{module}.{end}") for end in ends if f"{module}.{end}" in state}
        parts["weight_scale"] = parts["weight_scale"].to(torch.float32)
        state[f"{module}.weight"] = compressor.decompress(parts, scheme)["weight"]
    del config.quantization_config
    model = loader.from_config(config, dtype=dtype, **options)
    found = model.load_state_dict(state, strict=False)
    tied = set(model.all_tied_weights_keys)
    assert not found.unexpected_keys, f"the model has no {found.unexpected_keys}"
    assert not set(found.missing_keys) - tied, f"the files lack {found.missing_keys}"
    model.tie_weights()
    return model
