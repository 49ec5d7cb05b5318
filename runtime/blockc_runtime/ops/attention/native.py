"""Attention over the paged cache by blockc's own kernels, which read pages where they lie.

In and out: as in `cpu.py`, whose functions take what these do not. Invariant: equals the reference; a row reads its own
pages only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blockc_runtime.native.library import DTYPES, loaded
from blockc_runtime.native.queue import at_once, call
from blockc_runtime.native.template import Operand
from blockc_runtime.ops.attention import cpu
from blockc_runtime.ops.attention.batch import KvBatch
from blockc_runtime.ops.attention.cpu import PagedLayer, Scores
from blockc_runtime.ops.attention.narrow import FP8, INT8
from blockc_runtime.ops.cache.cpu import cached
from blockc_runtime.ops.norm.native import angles_fit, rotary
from blockc_runtime.ops.sides import SideSet

# Keys, values and angles of a call whose keys and values are in the cache already.
_WRITTEN = (None, 0, 0, None, 0, 0, None, None, 0)
# What kernels know a cache to be of; 0: of what the model is.
_KEPT = {FP8: 1, INT8: 2}
# More positions than a row has.
_NO_WINDOW = 1 << 40


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
    if not _fits(q, k, v, layer, key_size=q.shape[3], value_size=v.shape[3]):
        return cpu.attention(q, k, v, layer, batch, scale, window, softcap, sinks)
    cpu.check_window(window, batch)
    with at_once():
        return _attention(q, k, v, layer, batch, Scores(scale=scale, softcap=softcap, sinks=sinks))


def _attention(q: Tensor, k: Tensor, v: Tensor, layer: PagedLayer, batch: KvBatch, form: Scores) -> Tensor:
    for new, cache, scales in zip((k, v), (layer.keys, layer.values), _scales(layer), strict=True):
        loaded().write_cache(
            DTYPES[q.dtype], _KEPT.get(cache.dtype, 0),
            new.data_ptr(), new.stride(2), new.stride(1), batch.slots.data_ptr(), cache.data_ptr(), scales,
            new.shape[2], new.shape[1], new.shape[3],
        )  # fmt: skip
    out = q.new_empty((q.shape[2], q.shape[1], v.shape[3]))
    query = (q.data_ptr(), q.stride(2), q.stride(1), q.shape[1] // k.shape[1])
    if torch_takes_chunks(layer, form, batch):
        _attend(query, _WRITTEN, layer, batch, form, out, chunks=False)
        cpu.add_chunks(out, q, k, v, layer, batch, form)
    else:
        _attend(query, _WRITTEN, layer, batch, form, out)
    return out.unsqueeze(0)


def heads(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    counts: Sequence[int],
    angles: Sequence[Tensor],
    sides: SideSet,
    layer: PagedLayer,
    batch: KvBatch,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None = None,
) -> Tensor:
    """``attention`` of what linears yield: ``q [1,T,H*D]``, ``k`` and ``v [1,T,K*D]``, ``counts`` (H, K).

    ``angles``: cos and sin ``[1,1,T,D]`` by which queries and keys are rotated, or none; ``sides``: keys and values
    that fine-tunes put first. Rows of one token take one call, and so do all others, whatever there is to do.
    """
    tokens, (count, kv_count) = q.shape[1], counts
    key_size, value_size = q.shape[2] // count, v.shape[2] // kv_count
    form = Scores(scale=scale, softcap=softcap, sinks=sinks)
    alone = not torch_takes_chunks(layer, form, batch) and not sides
    if (
        not alone
        or not _fits(q, k, v, layer, key_size=key_size, value_size=value_size)
        or not angles_fit(q, key_size, angles)
    ):
        with at_once():
            q, k, v = (x.view(1, tokens, n, -1).transpose(1, 2) for x, n in ((q, count), (k, kv_count), (v, kv_count)))
            if angles:
                cos, sin = angles
                q, k = (rotary(x, cos, sin, key_size // 2) for x in (q, k))
            return attention(q, *cached(k, v, sides), layer, batch, scale, window, softcap, sinks)
    cpu.check_window(window, batch)
    turned = (angles[0].data_ptr(), angles[1].data_ptr(), angles[0].stride(2)) if angles else (None, None, 0)
    new = (k.data_ptr(), k.stride(1), key_size, v.data_ptr(), v.stride(1), value_size, *turned)
    out = q.new_empty((1, tokens, count, value_size))
    query = (q.data_ptr(), q.stride(1), key_size, count // kv_count)
    _attend(query, new, layer, batch, form, out, held=(q, k, v, angles))
    return out


def torch_takes_chunks(layer: PagedLayer, form: Scores, batch: KvBatch) -> bool:
    """Whether there are rows of several tokens for which torch's fused attention is better: it multiplies by AMX."""
    amx = loaded().level == "amx" and layer.keys.dtype == torch.bfloat16
    return amx and form.plain and batch.singles < len(batch.rows)


def _scales(layer: PagedLayer) -> tuple[int | None, int | None]:
    """Where those of keys and of values lie."""
    return (None, None) if layer.scales is None else (layer.scales[0].data_ptr(), layer.scales[1].data_ptr())


def _attend(
    query: tuple[int, int, int, int],
    new: tuple[int | None, ...],
    layer: PagedLayer,
    batch: KvBatch,
    form: Scores,
    out: Tensor,
    *,
    held: object = None,
    chunks: bool = True,
) -> None:
    """``held``: what ``query`` and ``new`` are the addresses of."""
    given = None if form.sinks is None else form.sinks.float().contiguous()
    _, kv_count, key_size = layer.keys.shape
    before = (
        DTYPES[out.dtype], _KEPT.get(layer.keys.dtype, 0), *query, *new, batch.slots.data_ptr(),
        layer.keys.data_ptr(), layer.values.data_ptr(), *_scales(layer),
        kv_count, key_size, layer.values.shape[2], layer.page_tokens,
    )  # fmt: skip
    after = (
        form.scale, form.softcap or 0.0, None if given is None else given.data_ptr(), out.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    held = held, given, out, batch
    if batch.singles:
        rows = batch.paged
        call(
            "attend", held, *before, rows.rows.data_ptr(), rows.pages.data_ptr(), batch.singles, rows.longest, *after,
        )  # fmt: skip
    if chunks and batch.singles < len(batch.rows):
        own = batch.paged_chunks
        window = _NO_WINDOW if batch.window is None else batch.window
        call("attend_chunks", held, *before, own.rows.data_ptr(), own.pages.data_ptr(), own.count, window, *after)


def operands(batch: KvBatch) -> list[Operand]:
    """What kernels read of a batch, with the numbers that they are told of it."""
    found = [Operand(tensor=batch.slots)]
    if batch.singles:
        rows = batch.paged
        found += [Operand(tensor=rows.rows), Operand(tensor=rows.pages, numbers=(batch.singles, rows.longest))]
    if batch.singles < len(batch.rows):
        own = batch.paged_chunks
        found += [Operand(tensor=own.rows), Operand(tensor=own.pages, numbers=(own.count,))]
    return found


def _fits(q: Tensor, k: Tensor, v: Tensor, layer: PagedLayer, *, key_size: int, value_size: int) -> bool:
    lanes = loaded().lanes
    alike = q.dtype in DTYPES and layer.keys.dtype == layer.values.dtype in (q.dtype, *_KEPT)
    inner = q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    return alike and inner and key_size % lanes == 0 and value_size % lanes == 0
