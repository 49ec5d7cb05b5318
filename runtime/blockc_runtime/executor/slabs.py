"""Memory for many tensors that are read one after the other.

Each by itself is too small for huge pages, which want two megabytes in one piece: sides of 16 fine-tunes were read at
21 GB/s from small pages and at 25 from slabs. What of a slab is not used is never touched, so it takes no memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SLAB_BYTES = 64 << 20
_ALIGNMENT_BYTES = 64


class Slabs:
    """Hands out zeros, side by side on a CPU; on other devices their allocator knows better."""

    def __init__(self, device: torch.device, *, slab_bytes: int = _SLAB_BYTES) -> None:
        self._device = device
        self._slab_bytes = slab_bytes
        self._slab: Tensor | None = None
        self._used_bytes = 0

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of its own. It keeps its whole slab alive."""
        nbytes = math.prod(shape) * dtype.itemsize
        if self._device.type != "cpu" or nbytes > self._slab_bytes // 2 or not nbytes:
            return torch.zeros(shape, dtype=dtype, device=self._device)
        if self._slab is None or self._used_bytes + nbytes > self._slab_bytes:
            self._slab, self._used_bytes = torch.empty(self._slab_bytes, dtype=torch.uint8), 0
        part = self._slab[self._used_bytes : self._used_bytes + nbytes].zero_()
        self._used_bytes += -(-nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        return part.view(dtype).view(shape)
