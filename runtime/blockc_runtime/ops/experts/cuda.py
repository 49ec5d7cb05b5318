"""Expert linears on CUDA: all experts in one grouped multiplication. Untested on hardware so far.

In: as in `reference.py`. Out: the same. Nothing waits for the device: how many tokens chose each expert stays there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blockc_runtime.ops.experts import cpu
from blockc_runtime.ops.integers import IntegerMatrix


def expert_linear(x: Tensor, weight: Tensor | IntegerMatrix, bias: Tensor | None, index: Tensor) -> Tensor:
    """``x [T,in]`` or ``[T,k,in]``, ``weight [E,out,in]``, ``bias [E,out]``, ``index [T,k]`` -> ``[T,k,out]``."""
    grouped = getattr(torch.nn.functional, "grouped_mm", None)
    if (
        isinstance(weight, IntegerMatrix)
        or grouped is None
        or x.dtype != torch.bfloat16
        or x.shape[-1] % 8
        or weight.shape[1] % 8
    ):
        return cpu.expert_linear(x, weight, bias, index)  # its rows are 16-byte aligned bfloat16 or nothing
    choices = index.shape[1]
    chosen, order = index.reshape(-1).sort(stable=True)
    rows = x.reshape(-1, x.shape[-1]).index_select(0, order if x.ndim == 3 else order // choices)
    ends = torch.searchsorted(chosen, torch.arange(1, weight.shape[0] + 1, device=x.device), out_int32=True)
    sorted_out: Tensor = grouped(rows, weight.transpose(1, 2), offs=ends)
    if bias is not None:
        sorted_out = sorted_out + bias.index_select(0, chosen)
    out = torch.empty_like(sorted_out)
    out[order] = sorted_out
    return out.view(*index.shape, weight.shape[1])
