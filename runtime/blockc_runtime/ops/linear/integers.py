"""Linears on matrices of integers: `LinearWeights` for them, and the forms in which a CPU multiplies fastest.

A dense slab of the matrix is made and multiplied at a time, unless there is a kernel that multiplies by the integers
themselves: blockc's own, or torch's, which are for bfloat16, and faster for few rows only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from blockc_runtime.ops import triton_
from blockc_runtime.ops.integers import CPU_SLAB, IntegerMatrix, joined, slabs, unpacked
from blockc_runtime.ops.linear.integers_native import IntegerTiles
from blockc_runtime.ops.linear.weights import join_biases


class Product(Protocol):
    """Multiplies by one matrix in some form. ``nbytes``: of that form."""

    nbytes: int

    def __call__(self, x: Tensor) -> Tensor:
        """``x [n, in]`` -> ``[n, out]``."""


# Rows up to which torch's kernels beat slabs (4096 x 4096, one core with AMX: at 16 rows 5.9 ms for either kernel,
# 7 for slabs of bytes, 22 for slabs of half bytes; at 128 rows 47, 10 and 26; a dense matrix takes 1.3 and 5 ms).
_BYTE_ROWS, _HALF_BYTE_ROWS = 12, 64
# Rows that torch's kernel for half bytes keeps side by side; it depends on the CPU.
_WIDTHS = (64, 32, 16)
_KERNEL_GROUPS = (32, 64, 128, 256)


class IntegerWeights:
    """One or more linears on the same input, joined. The matrices have bits, group and shift in common."""

    reads = 1

    def __init__(self, matrices: Sequence[IntegerMatrix], biases: Sequence[Tensor | None]) -> None:
        self.outs = [matrix.shape[0] for matrix in matrices]
        self.count = len(self.outs)
        self.bias = join_biases([matrix.scale for matrix in matrices], biases)
        self.product = product_by(joined(matrices))
        self.nbytes = self.product.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """``x [..., in]`` -> ``[..., out]`` of each linear."""
        y = self.product(x.reshape(-1, x.shape[-1]))
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], y.shape[1]).split_with_sizes(self.outs, -1)


def product_by(matrix: IntegerMatrix) -> Product:
    """The fastest form that keeps no second copy."""
    if matrix.codes.device.type == "cuda":
        if triton_.problem() is not None:
            return _Slabs(matrix)
        from blockc_runtime.ops.linear.integers_cuda import KernelProduct

        return KernelProduct.of(matrix) or _Slabs(matrix)
    if (tiled := IntegerTiles.of(matrix)) is not None:
        return tiled
    if matrix.bits == 8 and matrix.shift is None and matrix.scale.shape[1] == 1:
        return _BytesByRow(matrix)
    return _HalfBytesInTiles.of(matrix) or _Slabs(matrix)


class _Slabs:
    """By the definition."""

    def __init__(self, matrix: IntegerMatrix) -> None:
        self.matrix, self.nbytes = matrix, matrix.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        y = x.new_empty(len(x), self.matrix.shape[0])
        for start, stop in self.matrix.slabs():
            y[:, start:stop] = torch.mm(x, self.matrix.rows(start, stop).dense(x.dtype).t())
        return y


class _BytesByRow:
    """Signed bytes and one scale a row, which is applied to what comes out."""

    def __init__(self, matrix: IntegerMatrix) -> None:
        self.codes = matrix.codes.bitwise_xor(0x80).view(torch.int8)
        self.scale = matrix.scale[:, 0].contiguous()
        self.nbytes = self.codes.nbytes + self.scale.nbytes
        self._slabs = matrix.slabs()

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and 0 < len(x) <= _BYTE_ROWS:
            return torch._weight_int8pack_mm(x.contiguous(), self.codes, self.scale)
        y = x.new_empty(len(x), len(self.codes))
        for start, stop in self._slabs:
            y[:, start:stop] = torch.mm(x, self.codes[start:stop].to(x.dtype).t())
        return y.mul_(self.scale)


class _HalfBytesInTiles:
    """Half bytes in the order of torch's kernel. ``tiles`` U8 ``[out / width, in, width / 2]``."""

    def __init__(self, matrix: IntegerMatrix, packed: Tensor, width: int) -> None:
        self.packed, self.group = packed, matrix.group
        self.tiles = packed.view(-1, matrix.shape[1], width // 2)
        shift = torch.zeros_like(matrix.scale) if matrix.shift is None else matrix.shift
        self.scales = torch.stack([matrix.scale.t(), shift.t()], 2)  # [in / group, out, 2]
        self._slabs = slabs(len(self.tiles), matrix.shape[1] * width, CPU_SLAB)
        self._scale = _by_tile(matrix.scale, width)
        self._shift = None if matrix.shift is None else _by_tile(matrix.shift, width)
        held = (packed, self.scales, self._scale, self._shift)
        self.nbytes = sum(tensor.nbytes for tensor in held if tensor is not None)

    @classmethod
    def of(cls, matrix: IntegerMatrix) -> _HalfBytesInTiles | None:
        """None where there is no such kernel, or its order is none that is known."""
        out, columns = matrix.shape
        fits = matrix.bits == 4 and matrix.group in _KERNEL_GROUPS and out % _WIDTHS[-1] == 0 and columns % 2 == 0
        if matrix.scale.dtype != torch.bfloat16 or not fits:
            return None
        try:
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(unpacked(matrix.codes, 4).int(), 1)
        except (AttributeError, RuntimeError):
            return None
        for width in _WIDTHS:
            if out % width == 0:
                form = cls(matrix, packed, width)
                if torch.equal(_codes(form.tiles), unpacked(matrix.codes, 4)):
                    return form
        return None

    def __call__(self, x: Tensor) -> Tensor:
        if 0 < len(x) <= _HALF_BYTE_ROWS:
            y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), self.packed, self.group, self.scales)
            return y
        y = x.new_empty(len(x), self.scales.shape[1])
        width = 2 * self.tiles.shape[2]
        for start, stop in self._slabs:
            y[:, start * width : stop * width] = self._tiles(x, start, stop)
        return y

    def _tiles(self, x: Tensor, start: int, stop: int) -> Tensor:
        """``[n, tiles * width]``."""
        bytes_ = self.tiles[start:stop]
        count, columns, half = bytes_.shape
        dense = torch.cat([bytes_ & 15, bytes_ >> 4], 2).to(x.dtype).sub_(8).view(count, -1, self.group, 2 * half)
        dense.mul_(self._scale[start:stop])
        if self._shift is not None:
            dense.add_(self._shift[start:stop])
        return torch.matmul(x, dense.view(count, columns, 2 * half)).transpose(0, 1).flatten(1)


def _by_tile(values: Tensor, width: int) -> Tensor:
    """``[out, in / group]`` -> ``[tiles, in / group, 1, width]``."""
    return values.view(-1, width, values.shape[1]).transpose(1, 2).unsqueeze(2).contiguous()


def _codes(tiles: Tensor) -> Tensor:
    """``[out, in]``: the first half of a tile's rows in the low bits, the second in the high ones."""
    return torch.cat([tiles & 15, tiles >> 4], 2).transpose(1, 2).flatten(0, 1)
