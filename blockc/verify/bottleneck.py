"""AdapterHub's bottleneck adapters on a model of transformers, by hooks on its modules.

`adapters` 1.3 pins another transformers than this environment has, so the oracle is our own: written from the library's
forward methods, with none of the compiler's or the runtime's code, and held against what the library itself computed
(``tests/fixtures/adapterhub``).
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers.activations import ACT2FN

# In a layer: the norm whose input is the residual stream, the sublayer after it, and the adapter's module there.
_LAYERS = {
    "model.layers": (
        ("input_layernorm", "self_attn", "attention_adapters"),
        ("post_attention_layernorm", "mlp", "output_adapters"),
    ),
    "transformer.h": (("ln_1", "attn", "attention_adapters"), ("ln_2", "mlp", "output_adapters")),
}


def is_bottleneck(directory: Path) -> bool:
    """Whether a directory holds an adapter of AdapterHub's and none of PEFT's."""
    return "peft_type" not in json.loads((directory / "adapter_config.json").read_text())


def add_bottlenecks(model: Any, directory: Path) -> None:
    """Change what the model computes, as the adapter in ``directory`` does."""
    config = json.loads((directory / "adapter_config.json").read_text())
    tensors = load_file(directory / "adapter.safetensors")
    root = next(root for root in _LAYERS if any(root.split(".")[0] == name for name, _ in model.named_children()))
    hooked = 0
    for number, layer in enumerate(model.get_submodule(root)):
        for norm, sublayer, module in _LAYERS[root]:
            start = f"{root}.{number}.{module}.adapters.{config['name']}."
            bare = start.partition(".")[2]
            own = {
                name.removeprefix(start).removeprefix(bare): tensor.to(model.dtype)
                for name, tensor in tensors.items()
                if name.startswith((start, bare))
            }
            if own:
                adapter = _Adapter(own, config["config"], "version" not in config)
                layer.get_submodule(norm).register_forward_pre_hook(adapter.see_stream)
                layer.get_submodule(sublayer).register_forward_hook(partial(_replace, adapter))
                hooked += len(own)
    if hooked != len(tensors):
        raise ValueError(f"{len(tensors) - hooked} tensors of {directory} belong to no layer")


def _replace(adapter: _Adapter, _module: Any, _args: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (adapter(output[0]), *output[1:])
    return adapter(output)


class _Adapter:
    """One bottleneck. Called with a sublayer's result, it returns what the model must add to the stream instead."""

    def __init__(self, tensors: dict[str, Tensor], config: dict[str, Any], is_old: bool) -> None:
        self._tensors = tensors
        self._config = config
        self._stream: Tensor | None = None
        word = config["non_linearity"].lower()
        word = {"gelu": "gelu_new", "gelu_orig": "gelu"}.get(word, word) if is_old else word
        self._activation = functional.leaky_relu if word == "leakyrelu" else ACT2FN[word]

    def see_stream(self, _module: Any, args: tuple[Tensor, ...]) -> None:
        """Remember the residual stream before the sublayer's norm."""
        self._stream = args[0]

    def __call__(self, y: Tensor) -> Tensor:
        config, stream = self._config, self._stream
        assert stream is not None
        if config["is_parallel"]:
            new = self._bottleneck(stream) + y
            return new if config["original_ln_after"] else new - stream
        residual = y if config["residual_before_ln"] else None
        x = y + stream if config["original_ln_before"] else y
        residual = x if residual is None else residual
        new = self._bottleneck(x, residual)
        return new if config["original_ln_after"] else new - stream  # the model adds the stream in any case

    def _bottleneck(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        config, tensors = self._config, self._tensors
        first = 0
        if config["ln_before"]:
            x, first = self._norm(x, "adapter_norm_before"), 1
        inner = functional.linear(x, tensors[f"adapter_down.{first}.weight"], tensors[f"adapter_down.{first}.bias"])
        out = functional.linear(self._activation(inner), tensors["adapter_up.weight"], tensors["adapter_up.bias"])
        out = out * (tensors["scaling"] if "scaling" in tensors else config["scaling"])
        if residual is not None and config["adapter_residual_before_ln"]:
            out = out + residual
        if config["ln_after"]:
            out = self._norm(out, "adapter_norm_after")
        if residual is not None and not config["adapter_residual_before_ln"]:
            out = out + residual
        return out

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"])
