"""Linears on matrices of integers by blockc's own kernel for AMX: read as integers, multiplied as bfloat16.

Up to 16 rows take about the time of reading the integers. With more rows they are decoded once for 256 rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blockc_runtime.native.library import kernels, loaded
from blockc_runtime.ops.integers import IntegerMatrix
from blockc_runtime.ops.linear.by_kernel import PADDED_TO

# Outputs of a tile.
_OUTS = 16


class IntegerTiles:
    """Codes in the order of tiles, and their scales in the order in which they are used."""

    def __init__(self, matrix: IntegerMatrix) -> None:
        self.outs, self.size = matrix.shape
        self.bits, self.group = matrix.bits, matrix.group
        padded = [-(-size // PADDED_TO) * PADDED_TO for size in (self.outs, self.size)]
        # Outputs that are not there are never written, whatever these say of them.
        self.codes = torch.zeros(padded[0], padded[1] * matrix.bits // 8, dtype=torch.uint8)
        codes = matrix.codes.contiguous()
        own = loaded()
        assert own.to_integer_tiles is not None
        own.to_integer_tiles(codes.data_ptr(), matrix.bits, self.codes.data_ptr(), self.outs, self.size)
        scale = torch.zeros(padded[0], matrix.scale.shape[1], dtype=torch.bfloat16)
        scale[: self.outs] = matrix.scale
        self.scale = scale.view(-1, _OUTS, scale.shape[1]).transpose(1, 2).contiguous()
        self.nbytes = self.codes.nbytes + self.scale.nbytes

    @classmethod
    def of(cls, matrix: IntegerMatrix) -> IntegerTiles | None:
        """None where the kernel is not there, or takes no such groups."""
        own = kernels()
        if own is None or own.by_integer_tiles is None or matrix.codes.device.type != "cpu":
            return None
        groups = matrix.group % PADDED_TO == 0 or matrix.scale.shape[-1] == 1
        plain = matrix.shift is None and matrix.scale.dtype == torch.bfloat16 and matrix.codes.ndim == 2
        return cls(matrix) if plain and groups else None

    def __call__(self, x: Tensor) -> Tensor:
        """``x [n, in]`` -> ``[n, out]``."""
        if x.stride(1) != 1:
            x = x.contiguous()
        y = x.new_empty(len(x), self.outs)
        own = loaded()
        assert own.by_integer_tiles is not None
        if len(x):
            own.by_integer_tiles(
                x.data_ptr(), x.stride(0), self.codes.data_ptr(), self.bits, self.scale.data_ptr(), self.group,
                y.data_ptr(), self.outs, len(x), self.outs, self.size, torch.get_num_threads(),
            )  # fmt: skip
        return y
