"""Linears by blockc's own kernel for AMX: bfloat16 on CPUs that have it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from blockc_runtime.native.library import kernels, loaded
from blockc_runtime.ops.linear.weights import join_biases, nbytes_of

# To what outputs and inputs are padded.
PADDED_TO = 32


class TileWeights:
    """Joined and kept in the tiles that AMX multiplies, for blockc's own kernel: bfloat16 on CPUs that have it.

    Reads 32 to 30 GB/s at 1 to 16 rows where :class:`PackedWeights` reads 26 to 25; at 2,048 rows it multiplies at 0.85
    of its rate (two cores). ``zeros``: where tiles are put.
    """

    reads = 1

    def __init__(
        self,
        matrices: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        *,
        zeros: Callable[[tuple[int, ...], torch.dtype], Tensor] | None = None,
    ) -> None:
        self.outs = [matrix.shape[0] for matrix in matrices]
        self.count = len(self.outs)
        self.total, self.size = sum(self.outs), matrices[0].shape[1]
        padded = tuple(-(-size // PADDED_TO) * PADDED_TO for size in (self.total, self.size))
        self.tiles = (zeros or _zeros)(padded, torch.bfloat16)
        own = loaded()
        assert own.to_tiles is not None
        first = 0
        for matrix in matrices:
            own.to_tiles(matrix.contiguous().data_ptr(), self.tiles.data_ptr(), first, *matrix.shape)
            first += matrix.shape[0]
        self.bias = join_biases(matrices, biases)
        self.nbytes: int = self.tiles.nbytes + nbytes_of(self.bias)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """``x [..., in]`` -> ``[..., out]`` of each linear."""
        rows = x.shape[:-1].numel()
        y = x.new_empty((*x.shape[:-1], self.total))
        if x.stride(-1) != 1 or not (x.is_contiguous() or x.shape[:-2].numel() == 1):
            x = x.contiguous()
        own = loaded()
        assert own.by_tiles is not None
        if rows:
            own.by_tiles(
                x.data_ptr(), self.size if x.is_contiguous() else x.stride(-2), self.tiles.data_ptr(),
                None if self.bias is None else self.bias.data_ptr(), y.data_ptr(), self.total,
                rows, self.total, self.size, torch.get_num_threads(),
            )  # fmt: skip
        return y.split_with_sizes(self.outs, -1) if len(self.outs) > 1 else (y,)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def tiles(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether :class:`TileWeights` works here."""
    own = kernels()
    return dtype == torch.bfloat16 and device.type == "cpu" and own is not None and own.by_tiles is not None
