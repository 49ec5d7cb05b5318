"""Linears with sides, with torch's own kernels."""

from __future__ import annotations

from torch import Tensor

from blockc_runtime.ops.linear.sides import SideSet, add_sides
from blockc_runtime.ops.linear.weights import LinearWeights


def linears(x: Tensor, weights: LinearWeights, sides: SideSet) -> tuple[Tensor, ...]:
    """``x [1,T,in]`` -> ``[1,T,out]`` for each linear that reads ``x``. Without sides nothing is paid for them."""
    ys = weights(x)
    if sides:
        add_sides(ys, x, sides)
    return ys
