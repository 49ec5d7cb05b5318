"""Expert linears on CPU: one multiplication per expert that any token chose.

In: as in `reference.py`, or matrices of integers. Out: the same. Invariant: an expert that nobody chose is not read.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from blockc_runtime.ops.integers import IntegerMatrix


def expert_linear(x: Tensor, weight: Tensor | IntegerMatrix, bias: Tensor | None, index: Tensor) -> Tensor:
    """``x [T,in]`` or ``[T,k,in]``, ``weight [E,out,in]``, ``bias [E,out]``, ``index [T,k]`` -> ``[T,k,out]``."""
    choices = index.shape[1]
    order = index.reshape(-1).argsort(stable=True)
    rows = x.reshape(-1, x.shape[-1]).index_select(0, order if x.ndim == 3 else order // choices)
    counts = torch.bincount(index.reshape(-1), minlength=weight.shape[0]).tolist()
    sorted_out = x.new_empty(len(order), weight.shape[1])
    first = 0
    for expert, count in enumerate(counts):
        if count:
            span = slice(first, first + count)
            sorted_out[span] = linear(rows[span], weight[expert], None if bias is None else bias[expert])
            first += count
    out = torch.empty_like(sorted_out)
    out[order] = sorted_out
    return out.view(*index.shape, weight.shape[1])
