"""The sum of residual stream and sublayer by blockc's own kernel; torch's functions where there is more to do.

In and out: as in `cpu.py`. Invariant: equals it.
"""

from __future__ import annotations

from torch import Tensor

from blockc_runtime.native.library import DTYPES
from blockc_runtime.native.queue import at_once, call
from blockc_runtime.ops.residual import cpu
from blockc_runtime.ops.sides import SideSet


def residual(stream: Tensor, value: Tensor, sides: SideSet) -> Tensor:
    """``stream`` and ``value [1, T, hidden]`` -> their sum, with bottlenecks for the tokens that have some."""
    dtype = DTYPES.get(stream.dtype)
    alike = value.dtype == stream.dtype and value.shape == stream.shape
    if sides or dtype is None or not alike or not (stream.is_contiguous() and value.is_contiguous()):
        with at_once():
            return cpu.residual(stream, value, sides)
    out = stream.new_empty(stream.shape)
    call("add", (stream, value, out), dtype, stream.data_ptr(), value.data_ptr(), out.data_ptr(), stream.numel())
    return out
