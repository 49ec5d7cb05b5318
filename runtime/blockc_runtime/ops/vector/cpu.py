"""Vectors with sides, and the norms that take one for each token. On any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import layer_norm as plain_layer_norm

from blockc_runtime.ops.sides import SideSet


def vector(base: Tensor, sides: SideSet, spread: Sequence[int]) -> Tensor:
    """``base [n]`` itself where no row has one of its own, else one for each place in the shape ``spread``.

    ``spread`` has -1 on the axis of places and ends in n. Weights of a side: ``[N, n]``.
    """
    if not sides:
        return base
    rows = base.expand(sides[0][1].total, -1).clone()
    for values, batch in sides:
        rows.index_copy_(0, batch.tokens, values.index_select(0, batch.slots))
    return rows.view(*spread)


def layer_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """As ATen's, for weights and biases that may differ from place to place."""
    if (weight is None or weight.ndim == 1) and (bias is None or bias.ndim == 1):
        return plain_layer_norm(x, list(shape), weight, bias, eps)
    out = plain_layer_norm(x, list(shape), None, None, eps)
    if weight is not None:
        out = out * weight
    return out if bias is None else out + bias


def rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None) -> Tensor:
    """As ATen's, for a weight that may differ from place to place."""
    if weight is None or weight.ndim == 1:
        return torch.rms_norm(x, list(shape), weight, eps)
    return torch.rms_norm(x, list(shape), None, eps) * weight
