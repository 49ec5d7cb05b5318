"""One token at a time, in float32: the formula of `blockc.ir.codecs` as it stands there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": functional.leaky_relu,
}


def residual(
    stream: Tensor,
    value: Tensor,
    adapters: Sequence[Mapping[str, Tensor] | None],
    *,
    activation: str,
    reads: str,
    scale: float,
) -> Tensor:
    """``stream`` and ``value [T, hidden]``; for each token its adapter's tensors by role, or None."""
    out = []
    for r, y, own in zip(stream.float(), value.float(), adapters, strict=True):
        new = r + y
        if own is not None:
            x = {"stream": r, "sublayer": y, "sum": r + y}[reads]
            if "before_weight" in own:
                x = functional.layer_norm(x, x.shape, own["before_weight"], own["before_bias"], 1e-5)
            inner = own["down"] @ x + own.get("down_bias", torch.zeros(()))
            change = (own["up"] @ _ACTIVATIONS[activation](inner) + own.get("up_bias", torch.zeros(()))) * scale
            if "after_weight" in own:
                change = functional.layer_norm(change, x.shape, own["after_weight"], own["after_bias"], 1e-5)
            new = new + change
        out.append(new)
    return torch.stack(out)
