"""Linears by kernels of blockc: bfloat16 on CPUs that multiply tiles or pairs of it, or have no instructions for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from blockc_runtime.native.library import kernels, loaded
from blockc_runtime.native.queue import at_once, call
from blockc_runtime.ops.linear.weights import join_biases, nbytes_of

# To what outputs of all layouts are padded, and inputs of tiles.
PADDED_TO = 32


class KernelWeights:
    """Joined and kept in the layout of a kernel. ``zeros``: where they are put.

    ``lays`` and ``multiplies``: the kernels that lay a matrix out, and multiply by it.
    """

    reads = 1
    inputs_padded_to: ClassVar[int]
    lays: ClassVar[str]
    multiplies: ClassVar[str]

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
        padded = -(-self.total // PADDED_TO) * PADDED_TO, -(-self.size // self.inputs_padded_to) * self.inputs_padded_to
        self.laid = (zeros or _zeros)(padded, torch.bfloat16)
        lay = getattr(loaded(), self.lays)
        first = 0
        for matrix in matrices:
            lay(matrix.contiguous().data_ptr(), self.laid.data_ptr(), first, *matrix.shape)
            first += matrix.shape[0]
        self.bias = join_biases(matrices, biases)
        self.nbytes: int = self.laid.nbytes + nbytes_of(self.bias)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """``x [..., in]`` -> ``[..., out]`` of each linear."""
        rows = x.shape[:-1].numel()
        y = x.new_empty((*x.shape[:-1], self.total))
        if x.stride(-1) != 1 or not (x.is_contiguous() or x.shape[:-2].numel() == 1):
            with at_once():
                x = x.contiguous()
        if rows:
            call(
                self.multiplies, (x, y),
                x.data_ptr(), self.size if x.is_contiguous() else x.stride(-2), self.laid.data_ptr(),
                None if self.bias is None else self.bias.data_ptr(), y.data_ptr(), self.total,
                rows, self.total, self.size, torch.get_num_threads(),
            )  # fmt: skip
        return y.split_with_sizes(self.outs, -1) if len(self.outs) > 1 else (y,)


class TileWeights(KernelWeights):
    """In the tiles that AMX multiplies, and pair by pair CPUs that have AVX-512 for bfloat16.

    With AMX it reads 32 to 30 GB/s at 1 to 16 rows where :class:`PackedWeights` reads 26 to 25; at 2,048 rows it
    multiplies at 0.85 of its rate (two cores). Without AMX one core takes 0.65 and 0.8 of its time for 8 and 16 rows,
    and as long for 2,048 (Zen 5).
    """

    inputs_padded_to = PADDED_TO
    lays, multiplies = "to_tiles", "by_tiles"


class PanelWeights(KernelWeights):
    """In panels for AVX2, multiplied in float32.

    80 GFLOP/s of one core from 8 rows on, of the 98 that it has, where torch's own, which knows no bfloat16 there, has
    7 (Zen 3, busy); one row is read as fast as memory is.
    """

    inputs_padded_to = 1
    lays, multiplies = "to_panels", "by_panels"


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def forms_of(dtype: torch.dtype, device: torch.device) -> tuple[type[KernelWeights], ...]:
    """The forms that the kernels in use can multiply by."""
    own = kernels()
    if own is None or dtype != torch.bfloat16 or device.type != "cpu":
        return ()
    return (PanelWeights,) if own.by_tiles is None else (TileWeights,)


def kernel_weights(dtype: torch.dtype, device: torch.device) -> type[KernelWeights] | None:
    """The form of matrices for the kernel that is faster here than torch's own; None where there is none."""
    forms = forms_of(dtype, device)
    if TileWeights in forms:
        return TileWeights
    return PanelWeights if forms and loaded().level == "avx2" else None
