"""Where the stacks of a bank lie, as a table that kernels read on the device.

In: a bank at one group of linears. Out: int64: the address of A, its ranks, the ranks of an output, the number of
outputs, the address of the scale of what is read; then five for each output: the address of B, its width, its first
rank, the addresses of scale and bias. 0 stands for what there is not. Invariant: who keeps a table keeps the stacks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blockc_runtime.ops.linear.sides import SideWeights


def address_table(side: SideWeights, outputs: int, device: torch.device) -> Tensor:
    """Of a bank, made once. Scales and biases are left out where something has to be done before them."""
    if outputs not in side.tables:
        side.tables[outputs] = torch.tensor(_values(side, outputs), dtype=torch.int64).to(device)
    return side.tables[outputs]


def _values(side: SideWeights, outputs: int) -> list[int]:
    low_rank = side.low_rank
    values = [0, 0, 0] if low_rank is None else [low_rank.a.data_ptr(), low_rank.a.shape[2], low_rank.rank]
    values += [outputs, _address(side.in_scale(outputs))]
    terms = {} if low_rank is None else {out.output: out for out in low_rank.outputs}
    changes = {out.output: out for out in side.outputs} if side.is_stacked else {}
    for output in range(outputs):
        term, change = terms.get(output), changes.get(output)
        b = None if term is None else term.b
        scale, bias = (None, None) if change is None else (change.scale, change.bias)
        width = next((stack.shape[-1] for stack in (b, scale, bias) if stack is not None), 0)
        values += (_address(b), width, 0 if term is None else term.rank_start, _address(scale), _address(bias))
    return values


def _address(stack: Tensor | None) -> int:
    return 0 if stack is None else stack.data_ptr()
