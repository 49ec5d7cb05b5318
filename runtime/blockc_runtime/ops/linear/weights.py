"""Weights of linears that read the same value, in the form that a device multiplies fastest.

In: dense ``[out, in]`` matrices with their biases. Out: an object that maps ``x [..., in]`` to one output each.
Invariant: the outputs are those of the separate linears, in order, and may be written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear


class LinearWeights(Protocol):
    """One or more linears on the same input.

    ``count``: how many linears; ``reads``: how many multiplications it takes; ``nbytes``: memory of its own, beside the
    tensors it was given.
    """

    count: int
    reads: int
    nbytes: int

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """``x [..., in]`` -> ``[..., out]`` of each linear."""


class DenseWeights:
    """Each matrix as it lies in the zoo, possibly shared with other users: no bytes of its own."""

    nbytes = 0

    def __init__(self, matrices: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        self.pairs = tuple(zip(matrices, biases, strict=True))
        self.count = self.reads = len(self.pairs)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """``x [..., in]`` -> ``[..., out]`` of each linear."""
        return tuple(linear(x, matrix, bias) for matrix, bias in self.pairs)


class JoinedWeights:
    """Matrices one above the other: one multiplication."""

    reads = 1

    def __init__(self, matrices: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        self.outs = [matrix.shape[0] for matrix in matrices]
        self.count = len(self.outs)
        self.matrix = torch.cat(list(matrices))
        self.bias = join_biases(matrices, biases)
        self.nbytes = self.matrix.nbytes + nbytes_of(self.bias)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """``x [..., in]`` -> ``[..., out]`` of each linear."""
        return linear(x, self.matrix, self.bias).split_with_sizes(self.outs, -1)


class PackedWeights:
    """Joined and reordered for oneDNN, whose layout is opaque: on CPU only.

    bfloat16 reads 26, 21, 16 GB/s at 1, 8, 16 rows where the dense matrix reads 13, 13, 11 (two
    cores); float32 21, 16, 11 where it reads 20, 8, 6 (one core).
    """

    reads = 1

    def __init__(self, matrices: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        joined = torch.cat(list(matrices)) if len(matrices) > 1 else matrices[0]
        self.outs = [matrix.shape[0] for matrix in matrices]
        self.count = len(self.outs)
        self.total = sum(self.outs)
        self.matrix: Tensor = torch.ops.mkldnn._reorder_linear_weight(joined)
        self.bias = join_biases(matrices, biases)
        self.nbytes: int = torch.ops.mkldnn._nbytes(self.matrix) + nbytes_of(self.bias)
        self._multiply = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """``x [..., in]`` -> ``[..., out]`` of each linear."""
        if not x.shape[1]:  # no row wants logits; oneDNN refuses empty operands
            return x.new_empty((*x.shape[:-1], self.total)).split_with_sizes(self.outs, -1)
        y: Tensor = self._multiply(x, self.matrix, self.bias, "none", [], "")
        return y.split_with_sizes(self.outs, -1) if len(self.outs) > 1 else (y,)


def packs(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether :class:`PackedWeights` works here."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device.type != "cpu" or not available:
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def join_biases(matrices: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor | None:
    """One bias for all, zero where a linear has none; None if none has."""
    if all(bias is None for bias in biases):
        return None
    return torch.cat(
        [
            matrix.new_zeros(matrix.shape[0]) if bias is None else bias
            for matrix, bias in zip(matrices, biases, strict=True)
        ]
    )


def nbytes_of(tensor: Tensor | None) -> int:
    """0 for none."""
    return 0 if tensor is None else tensor.nbytes
