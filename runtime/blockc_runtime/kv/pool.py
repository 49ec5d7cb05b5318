"""The memory of KV groups.

In: the plan's groups and pages. Out: for each group and layer its keys and values.
Invariant: no two pools overlap; bytes are pages times ``KvGroupEntry.page_bytes``, on CUDA of one page more, which is
workspace; on CPU nothing is resident before it is written.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from blockc.plan import ExecutionPlan, KvGroupEntry
from blockc_runtime.kv.carry import group_pages
from blockc_runtime.ops.attention.cpu import PagedLayer
from blockc_runtime.ops.attention.narrow import INT8
from blockc_runtime.ops.dtypes import torch_dtype

_LOWEST_BIT = bytes(byte & 1 for byte in range(256))  # of what `mincore` says: the others mean nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class KvPool:
    """The pages of one KV group. ``layers[i]`` is the cache of the group's i-th layer.

    ``memory``: of all its layers. ``scratch``: the page behind the last, which no request is given: rows that only fill
    up a bucket write there.
    """

    pages: int
    page_tokens: int
    layers: tuple[PagedLayer, ...]
    memory: tuple[torch.Tensor, ...]
    scratch: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of it."""
        return sum(own.nbytes for own in self.memory)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the page that no request is given: a plan counts them as workspace."""
        return 0 if self.scratch is None else self.nbytes // (self.pages + 1)

    def resident_bytes(self) -> int:
        """Bytes of it in memory: on CPU those of the pages that were ever written."""
        return sum(_resident_bytes(own) for own in self.memory)

    def erase(self, slots: torch.Tensor) -> None:
        """Zero these slots in all layers: a NaN left in a page would reach whoever gets it next."""
        for layer in self.layers:
            layer.erase(slots)


def kv_pools(
    plan: ExecutionPlan,
    *,
    device: torch.device,
    scratch: bool | None = None,
    kept: Mapping[int, KvPool] | None = None,
) -> tuple[KvPool, ...]:
    """One pool per KV group of ``plan``, as large as all instances' pages together.

    ``scratch``: whether there is a page for rows that fill up buckets; by default on CUDA alone. ``kept``: those of
    another plan that groups of this one go on in (`kv.carry`).
    """
    extra, kept = int(device.type == "cuda" if scratch is None else scratch), kept or {}
    return tuple(
        kept[index] if index in kept else _pool(group, count, device, extra)
        for index, (group, count) in enumerate(zip(plan.kv_groups, group_pages(plan), strict=True))
    )


def _pool(group: KvGroupEntry, pages: int, device: torch.device, extra: int) -> KvPool:
    slots = (pages + extra) * group.page_tokens
    heads = group.layers, 2, slots, group.kv_heads
    codes = _zeros((*heads, group.head_dim), group.dtype, device)
    scales = _zeros(heads, "F32", device) if codes.dtype == INT8 else None
    return KvPool(
        pages=pages,
        page_tokens=group.page_tokens,
        layers=tuple(
            PagedLayer(
                keys=keys,
                values=values,
                page_tokens=group.page_tokens,
                scales=None if scales is None else (scales[layer, 0], scales[layer, 1]),
            )
            for layer, (keys, values) in enumerate(codes.unbind())
        ),
        memory=(codes,) if scales is None else (codes, scales),
        scratch=pages if extra else None,
    )


def _zeros(shape: tuple[int, ...], code: str, device: torch.device) -> torch.Tensor:
    """Zeros, because a masked value still meets a factor of 0, and 0 times a NaN is a NaN."""
    dtype = torch_dtype(code)
    count = torch.Size(shape).numel()
    if device.type != "cpu" or not count:
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch.zeros writes every byte on CPU; anonymous memory is zero and resident only once written.
    # Private: what is shared counts as a file in memory.
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _resident_bytes(tensor: torch.Tensor) -> int:
    """Bytes of ``tensor`` in memory, as the system counts them; all of them where it does not say."""
    libc = ctypes.CDLL(None) if tensor.device.type == "cpu" and tensor.nbytes else None
    if libc is None or not hasattr(libc, "mincore"):
        return tensor.nbytes
    pages = -(-tensor.nbytes // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * pages)()
    if libc.mincore(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(tensor.nbytes), found):
        return tensor.nbytes
    # No loop of Python's: the engine asks between two steps, and 8 GiB have two million pages.
    return min(tensor.nbytes, mmap.PAGESIZE * bytes(found).translate(_LOWEST_BIT).count(1))
