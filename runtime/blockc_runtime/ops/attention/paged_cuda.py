"""Attention over the paged cache on CUDA by kernels of blockc's own, which read pages in place.

In and out: as in `cpu.py`, whose functions take what these do not. Query heads of a KV head are one product. Rows of
one token are split among programs where they are few; those of several tokens go in tiles, of which none keeps a score.
Invariant: equals the reference; a row reads its own pages only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from blockc_runtime.ops.attention import cpu
from blockc_runtime.ops.attention.batch import KvBatch, PagedRows, StaticBatch
from blockc_runtime.ops.attention.cpu import PagedLayer, Scores
from blockc_runtime.ops.attention.kernels import attend_chunks, attend_pages, join_parts, write_heads
from blockc_runtime.ops.attention.narrow import FP8, INT8, kernel_problem
from blockc_runtime.ops.cache.cpu import cached
from blockc_runtime.ops.norm.cpu import rotary
from blockc_runtime.ops.norm.native import angles_fit
from blockc_runtime.ops.sides import SideSet

# Rows and columns of a product: tensor cores take no fewer.
_LEAST = 16
# What kernels know a cache to be of; 0: of what the model is.
_KEPT = {FP8: 1, INT8: 2}
# Programs that keep a large device busy; contexts are split among them where rows are too few.
_PROGRAMS, _MOST_SPLITS = 512, 64
# Positions at once, and the values of a key or value that these are for.
_BLOCK, _WIDE = 64, 128
# Queries of a tile of several tokens: with values of two bytes, which tensor cores multiply, and with others.
_TILE, _SMALL_TILE = 128, 32


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer: PagedLayer,
    batch: KvBatch | StaticBatch,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None = None,
) -> Tensor:
    """``q [1,H,T,D]``, ``k`` and ``v [1,K,T,D]``, ``sinks [H]``. Writes the cache, then reads it."""
    return _attention(q, k, v, (), layer, batch, Scores(scale=scale, softcap=softcap, sinks=sinks), window)


def heads(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    counts: Sequence[int],
    angles: Sequence[Tensor],
    sides: SideSet,
    layer: PagedLayer,
    batch: KvBatch | StaticBatch,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None = None,
) -> Tensor:
    """``attention`` of what linears yield: ``q [1,T,H*D]``, ``k`` and ``v [1,T,K*D]``, ``counts`` (H, K).

    ``angles``: cos and sin ``[1,1,T,D]`` by which queries and keys are rotated, or none; ``sides``: keys and values
    that fine-tunes put first.
    """
    (count, kv_count), tokens = counts, q.shape[1]
    q, k, v = (x.view(1, tokens, n, -1).transpose(1, 2) for x, n in ((q, count), (k, kv_count), (v, kv_count)))
    if angles and (sides or not angles_fit(q.transpose(1, 2), q.shape[3], angles)):
        cos, sin = angles
        q, k = (rotary(x, cos, sin, x.shape[3] // 2) for x in (q, k))
        angles = ()
    k, v = cached(k, v, sides)
    return _attention(q, k, v, angles, layer, batch, Scores(scale=scale, softcap=softcap, sinks=sinks), window)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    angles: Sequence[Tensor],
    layer: PagedLayer,
    batch: KvBatch | StaticBatch,
    form: Scores,
    window: int | None,
) -> Tensor:
    if isinstance(batch, KvBatch) and kernel_problem(layer.keys) is not None:
        if angles:
            cos, sin = angles
            q, k = (rotary(x, cos, sin, x.shape[3] // 2) for x in (q, k))
        return cpu.attention(q, k, v, layer, batch, form.scale, window, form.softcap, form.sinks)
    cpu.check_window(window, batch)
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    q = _write(q, k, v, angles, layer, batch)
    out = q.new_empty((q.shape[2], q.shape[1], v.shape[3]))
    if batch.singles:
        _attend(q, layer, batch.on_device, form, out)
    if batch.has_chunks:
        _attend_chunks(q, layer, batch, form, out)
    return out.unsqueeze(0)


def _write(
    q: Tensor, k: Tensor, v: Tensor, angles: Sequence[Tensor], layer: PagedLayer, batch: KvBatch | StaticBatch
) -> Tensor:
    """Write the cache. Returns queries, rotated where that is to be done."""
    _, count, tokens, size = q.shape
    kv_count, value_size = v.shape[1], v.shape[3]
    turn = bool(angles)
    cos, sin = angles or (q, q)
    turned = q.new_empty((1, tokens, count, size)) if turn else q
    # Values, keys, and queries only where something is done to them.
    write_heads[(tokens, 3 if turn else 2)](
        q, k, v, turned, cos, sin, layer.keys, layer.values, *_scales(layer), batch.slots,
        *(x.stride(i) for x in (q, k, v) for i in (2, 1)), cos.stride(2), count, kv_count,
        HEADS=triton.next_power_of_2(count if turn else kv_count), KEY_SIZE=size, VALUE_SIZE=value_size,
        HALF=triton.next_power_of_2(size // 2), VALUE=triton.next_power_of_2(value_size), TURN=turn,
        KEPT=_KEPT.get(layer.keys.dtype, 0),
    )  # fmt: skip
    return turned.transpose(1, 2) if turn else q


def _scales(layer: PagedLayer) -> tuple[Tensor, Tensor]:
    """Those of keys and of values; where there are none, whatever there is: it is not read."""
    return (layer.keys, layer.values) if layer.scales is None else layer.scales


def _attend(q: Tensor, layer: PagedLayer, rows: PagedRows, form: Scores, out: Tensor) -> None:
    """Fill in ``out [T,H,D]`` for the rows of one token."""
    row_count, count = len(rows.rows), q.shape[1]
    kv_count, size = layer.keys.shape[1:]
    value_size = layer.values.shape[2]
    key, value = (max(_LEAST, triton.next_power_of_2(own)) for own in (size, value_size))
    block = max(_LEAST, _BLOCK * _WIDE // max(_WIDE, key, value))
    most = max(1, min(_MOST_SPLITS, _PROGRAMS // (row_count * kv_count), triton.cdiv(rows.longest, block)))
    splits = 1 << (most.bit_length() - 1)
    parts = sums = out
    if splits > 1:
        parts = out.new_empty((splits, row_count, count, value_size), dtype=torch.float32)
        sums = out.new_empty((splits, row_count, count, 2), dtype=torch.float32)
    sinks = q if form.sinks is None else form.sinks
    attend_pages[(row_count, kv_count, splits)](
        q, layer.keys, layer.values, *_scales(layer), rows.rows, rows.pages, sinks, out, parts, sums,
        q.stride(2), q.stride(1), count // kv_count, count, kv_count, splits,
        float(form.scale), float(form.softcap or 1),
        GROUP=max(_LEAST, triton.next_power_of_2(count // kv_count)), KEY_SIZE=size, VALUE_SIZE=value_size, KEY=key,
        VALUE=value, PAGE=layer.page_tokens, BLOCK=block, HAS_SCALES=layer.scales is not None,
        HAS_SOFTCAP=form.softcap is not None, HAS_SINKS=form.sinks is not None, IS_PART=splits > 1, num_stages=3,
    )  # fmt: skip
    if splits > 1:
        join_parts[(row_count, count)](
            parts, sums, rows.rows, sinks, out, count, splits,
            SPLITS=splits, VALUE_SIZE=value_size, VALUE=value, HAS_SINKS=form.sinks is not None,
        )  # fmt: skip


def _attend_chunks(q: Tensor, layer: PagedLayer, batch: KvBatch | StaticBatch, form: Scores, out: Tensor) -> None:
    """Fill in ``out [T,H,D]`` for the rows of several tokens."""
    count, kv_count, size = q.shape[1], *layer.keys.shape[1:]
    group, value_size = count // kv_count, layer.values.shape[2]
    key, value = (max(_LEAST, triton.next_power_of_2(own)) for own in (size, value_size))
    block = max(_LEAST, _BLOCK * _WIDE // max(_WIDE, key, value))
    is_half = q.dtype.itemsize == 2 and max(key, value) <= _WIDE
    queries = max(_TILE if is_half else _SMALL_TILE, triton.next_power_of_2(group))
    chunks, tiles = batch.chunks_on_device, batch.chunk_tiles(queries // group)
    sinks = q if form.sinks is None else form.sinks
    attend_chunks[(batch.most_tiles(queries // group), kv_count)](
        q, layer.keys, layer.values, *_scales(layer), chunks.rows, chunks.pages,
        chunks.rows if tiles is None else tiles, sinks, out,
        q.stride(2), q.stride(1), group, count, kv_count, batch.window or 0, float(form.scale),
        float(form.softcap or 1),
        QUERIES=queries, KEY_SIZE=size, VALUE_SIZE=value_size, KEY=key, VALUE=value, PAGE=layer.page_tokens,
        BLOCK=block, ROWS=chunks.count if tiles is None else 0, HAS_WINDOW=batch.window is not None,
        HAS_SCALES=layer.scales is not None,
        HAS_SOFTCAP=form.softcap is not None, HAS_SINKS=form.sinks is not None,
        num_warps=8 if queries >= _TILE else 4, num_stages=2,
    )  # fmt: skip
