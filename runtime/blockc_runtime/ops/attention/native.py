"""Attention over the paged cache: rows of one token by blockc's own kernel, which reads pages where they lie.

In and out: as in `cpu.py`, whose functions take chunks of prompts. Invariant: equals the reference; a row reads its own
pages only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blockc_runtime.native.library import DTYPES, loaded
from blockc_runtime.ops.attention import cpu
from blockc_runtime.ops.attention.batch import KvBatch
from blockc_runtime.ops.attention.cpu import PagedLayer, Scores


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer: PagedLayer,
    batch: KvBatch,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None = None,
) -> Tensor:
    """``q [1,H,T,D]``, ``k`` and ``v [1,K,T,D]``, ``sinks [H]``. Writes the cache, then reads it."""
    if not _fits(q, k, v, layer):
        return cpu.attention(q, k, v, layer, batch, scale, window, softcap, sinks)
    cpu.check_window(window, batch)
    dtype = DTYPES[q.dtype]
    _, heads, tokens, key_size = q.shape
    kv_heads, value_size = v.shape[1], v.shape[3]
    for new, cache in ((k, layer.keys), (v, layer.values)):
        loaded().write_cache(
            dtype,
            new.data_ptr(), new.stride(2), new.stride(1), batch.slots.data_ptr(), cache.data_ptr(),
            tokens, kv_heads, new.shape[3],
        )  # fmt: skip
    out = q.new_empty((tokens, heads, value_size))
    if batch.singles:
        rows = batch.paged
        given = None if sinks is None else sinks.float().contiguous()
        loaded().attend(
            dtype,
            q.data_ptr(), q.stride(2), q.stride(1), heads // kv_heads,
            layer.keys.data_ptr(), layer.values.data_ptr(), kv_heads, key_size, value_size, layer.page_tokens,
            rows.rows.data_ptr(), rows.pages.data_ptr(), batch.singles, rows.longest,
            scale, softcap or 0.0, None if given is None else given.data_ptr(), out.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
    if batch.chunks:
        cpu.add_chunks(out, q, k, v, layer, batch, Scores(scale=scale, softcap=softcap, sinks=sinks))
    return out.unsqueeze(0)


def _fits(q: Tensor, k: Tensor, v: Tensor, layer: PagedLayer) -> bool:
    sizes = q.shape[3] % loaded().lanes == 0 and v.shape[3] % loaded().lanes == 0
    alike = q.dtype in DTYPES and q.dtype == layer.keys.dtype == layer.values.dtype
    return sizes and alike and all(x.stride(3) == 1 for x in (q, k, v))
