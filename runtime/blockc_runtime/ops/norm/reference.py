"""Norm, gated activation and rotary embedding by their definitions, in float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Per vector: divide by ``sqrt(mean(x^2) + eps)`` in float32, cast back, times ``weight``."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(rows)
    for i, row in enumerate(rows):
        square = sum(float(value) ** 2 for value in row) / len(row)
        out[i] = (row.float() / math.sqrt(square + eps)).to(x.dtype) * weight
    return out.reshape(x.shape)


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """``x / (1 + exp(-x)) * up``; for ``gelu_tanh`` x times the tanh form of the normal distribution."""
    x = gate.float()
    if activation == "silu":
        active = x / (1 + torch.exp(-x))
    else:
        active = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return active.to(gate.dtype) * up


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x * cos + rotate(x) * sin``, where ``rotate`` maps halves (a, b) to (-b, a)."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
