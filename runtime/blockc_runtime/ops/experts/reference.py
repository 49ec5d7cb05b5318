"""Expert linears by their definition: token by token, choice by choice, in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def expert_linear(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor) -> Tensor:
    """``x [T,in]`` or ``[T,k,in]``, ``weight [E,out,in]``, ``bias [E,out]``, ``index [T,k]`` -> ``[T,k,out]``."""
    out = torch.zeros(*index.shape, weight.shape[1])
    for token, choices in enumerate(index.tolist()):
        for place, expert in enumerate(choices):
            value = x[token] if x.ndim == 2 else x[token, place]
            out[token, place] = weight[expert].float() @ value.float()
            if bias is not None:
                out[token, place] += bias[expert].float()
    return out.to(x.dtype)
