"""Attention over the paged cache with torch's own kernels.

In: as in `reference.py`, with the rows prepared as a :class:`KvBatch`. Out: ``[1, T, H, D]``.
Invariant: equals the reference; a row reads its own pages only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from blockc_runtime.ops.attention.batch import Chunk, DecodeBucket, KvBatch, StaticBatch
from blockc_runtime.ops.attention.narrow import as_bytes, as_cached, narrowed, whole, widened


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedLayer:
    """The cache of one attention layer: ``keys`` and ``values`` are ``[pages * page_tokens, K, D]``.

    ``scales``: of keys and of values, if they are whole numbers: float32 ``[pages * page_tokens, K]`` each.
    """

    keys: Tensor
    values: Tensor
    page_tokens: int
    scales: tuple[Tensor, Tensor] | None = None

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """``keys`` and ``values [T, K, D]`` of a model, to ``slots [T]``."""
        for place, (new, cache) in enumerate(((keys, self.keys), (values, self.values))):
            if self.scales is None:
                as_bytes(cache).index_copy_(0, slots, as_bytes(narrowed(new, cache.dtype)))
            else:
                codes, scales = whole(new)
                cache.index_copy_(0, slots, codes)
                self.scales[place].index_copy_(0, slots, scales)

    def gather(self, pages: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of ``pages [P]``, as they are computed with: ``[P * page_tokens, K, D]`` each."""
        keys, values = (self._of_pages(own, pages) for own in (self.keys, self.values))
        scales = (None, None) if self.scales is None else tuple(self._of_pages(own, pages) for own in self.scales)
        return widened(keys, scales[0], dtype), widened(values, scales[1], dtype)

    def erase(self, slots: Tensor) -> None:
        """Zero these slots."""
        for own in (as_bytes(self.keys), as_bytes(self.values), *(self.scales or ())):
            own.index_fill_(0, slots, 0)

    def _of_pages(self, own: Tensor, pages: Tensor) -> Tensor:
        # index_select of whole pages: 27 us where indexing by slot takes 226 (16 requests, 192 keys).
        slot = own.shape[1:]
        return own.view(-1, self.page_tokens * slot.numel()).index_select(0, pages).view(-1, *slot)


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
    check_window(window, batch)
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (q, k, v))
    form = Scores(scale=scale, softcap=softcap, sinks=sinks)
    layer.write(batch.slots, keys, values)
    if len(batch.buckets) == 1 and not batch.chunks:
        return _decode(queries, layer, batch.buckets[0], form).unsqueeze(0)
    out = q.new_empty((q.shape[2], q.shape[1], v.shape[3]))
    for bucket in batch.buckets:
        if bucket.index is None:
            out[: bucket.rows] = _decode(queries[: bucket.rows], layer, bucket, form)
        else:
            picked = queries.index_select(0, bucket.index)
            out.index_copy_(0, bucket.index, _decode(picked, layer, bucket, form))
    add_chunks(out, q, k, v, layer, batch, form)
    return out.unsqueeze(0)


def check_window(window: int | None, batch: KvBatch | StaticBatch) -> None:
    """Raises ValueError: a page that a window has passed may be gone."""
    if window != batch.window:
        raise ValueError(f"a block binds window {window}, its KV group has {batch.window}")


def add_chunks(out: Tensor, q: Tensor, k: Tensor, v: Tensor, layer: PagedLayer, batch: KvBatch, form: Scores) -> None:
    """Fill in ``out [T,H,D]`` for the rows of several tokens."""
    if not batch.chunks:
        return
    k, v = as_cached(k, layer.keys.dtype), as_cached(v, layer.values.dtype)
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (q, k, v))
    for chunk in batch.chunks:
        span = slice(chunk.first, chunk.first + chunk.count)
        out[span] = _prefill(queries[span], keys[span], values[span], layer, chunk, form)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How scores become weights: ``softcap * tanh(score / softcap)``, and a sink a head that takes part of them."""

    scale: float
    softcap: float | None
    sinks: Tensor | None

    @property
    def plain(self) -> bool:
        """Whether fused attention computes them."""
        return self.softcap is None and self.sinks is None


def _decode(queries: Tensor, layer: PagedLayer, bucket: DecodeBucket, form: Scores) -> Tensor:
    """``queries [n,H,D]`` -> ``[n,H,D]``."""
    rows, heads, size = queries.shape
    keys, values = layer.gather(bucket.pages, queries.dtype)
    kv_heads = keys.shape[1]
    # The query heads of a KV group become queries: bf16 with `enable_gqa` takes ten times as long.
    folded = queries.reshape(rows, kv_heads, heads // kv_heads, size)
    keys, values = (tensor.view(rows, -1, kv_heads, tensor.shape[2]).transpose(1, 2) for tensor in (keys, values))
    if form.plain:
        out = scaled_dot_product_attention(folded, keys, values, bucket.mask, scale=form.scale)
    else:
        sinks = None if form.sinks is None else form.sinks.view(kv_heads, heads // kv_heads, 1)
        out = _weighted(folded, keys, values, bucket.mask, form, sinks)
    return out.reshape(rows, heads, -1)


def _prefill(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    layer: PagedLayer,
    chunk: Chunk,
    form: Scores,
) -> Tensor:
    """``queries [n,H,D]``, new ``keys`` and ``values [n,K,D]`` -> ``[n,H,D]``."""
    count, heads, size = queries.shape
    if chunk.pages is not None:
        keys, values = layer.gather(chunk.pages, queries.dtype)
    kv_heads = keys.shape[1]
    # KV heads as the batch, each head's keys seen by its query heads with stride 0: no copy.
    grouped = queries.view(count, kv_heads, heads // kv_heads, size).permute(1, 2, 0, 3)
    keys, values = (
        tensor.transpose(0, 1).unsqueeze(1).expand(-1, heads // kv_heads, -1, -1) for tensor in (keys, values)
    )
    if form.plain:
        if chunk.mask is not None and queries.is_cuda:
            # Torch's memory-efficient kernel with a mask is wrong from the 65th query on for operands that lie like
            # these (2.11 on an H100, float32: off by 2.5 for 65 queries on 65 keys under a window of 24).
            grouped, keys, values = (tensor.contiguous() for tensor in (grouped, keys, values))
        out = scaled_dot_product_attention(
            grouped, keys, values, chunk.mask, is_causal=chunk.mask is None, scale=form.scale
        )
    else:
        sinks = None if form.sinks is None else form.sinks.view(kv_heads, heads // kv_heads, 1, 1)
        out = _weighted(grouped, keys, values, chunk.mask, form, sinks)
    return out.permute(2, 0, 1, 3).reshape(count, heads, -1)


def _weighted(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, form: Scores, sinks: Tensor | None
) -> Tensor:
    """Attention in its steps, in float32, for what fused attention does not offer. ``sinks`` is ``[..., n, 1]``."""
    scores = torch.matmul(queries, keys.transpose(-1, -2)).float() * form.scale
    if form.softcap is not None:
        scores = torch.tanh(scores / form.softcap) * form.softcap
    if mask is None:
        mask = scores.new_full(scores.shape[-2:], float("-inf")).triu_(1)
    scores = scores + mask
    if sinks is None:
        weights = torch.softmax(scores, -1)
    else:
        beside = sinks.float().expand(*scores.shape[:-1], 1)
        weights = torch.softmax(torch.cat([scores, beside], -1), -1)[..., :-1]
    return torch.matmul(weights.to(values.dtype), values)
