"""Attention over the paged cache, one request, one head and one token at a time, in float32.

In: new queries, keys and values of all rows on one token axis, the layer's pool, the rows. Out: ``[1, T, H, D]``, D
that of values.
Invariant: a token sees exactly the positions ``p - window + 1 .. p`` of its own request (all up to ``p`` without a
window); the new keys and values are written to the pool first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blockc_runtime.ops.attention.narrow import narrowed, whole, widened
from blockc_runtime.ops.attention.rows import KvRow


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    keys: Tensor,
    values: Tensor,
    rows: Sequence[KvRow],
    page_tokens: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None = None,
    scales: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """``q [1,H,T,D]``, ``k`` and ``v [1,K,T,D]``; ``keys`` and ``values [slots,K,D]`` are written; ``sinks [H]``.

    ``scales [slots,K]``: of keys and of values that are whole numbers.
    """
    heads, kv_heads = q.shape[1], k.shape[1]
    out = torch.zeros(1, q.shape[2], heads, v.shape[3], dtype=torch.float32)
    for row in rows:
        for i in range(row.count):
            slot = row.slot(row.start + i, page_tokens)
            for place, (new, cache) in enumerate(((k, keys), (v, values))):
                if scales is None:
                    cache[slot] = narrowed(new[0, :, row.first + i], cache.dtype)
                else:
                    cache[slot], scales[place][slot] = whole(new[0, :, row.first + i])
    by_key, by_value = scales or (None, None)
    read_keys, read_values = widened(keys, by_key, torch.float32), widened(values, by_value, torch.float32)
    for row in rows:
        for i in range(row.count):
            position = row.start + i
            lowest = 0 if window is None else max(0, position - window + 1)
            slots = [row.slot(p, page_tokens) for p in range(lowest, position + 1)]
            for head in range(heads):
                kv_head = head * kv_heads // heads
                query = q[0, head, row.first + i].float()
                scores = [float(query @ read_keys[slot, kv_head]) * scale for slot in slots]
                if softcap is not None:
                    scores = [math.tanh(score / softcap) * softcap for score in scores]
                if sinks is not None:
                    scores.append(float(sinks[head]))
                weights = torch.softmax(torch.tensor(scores), 0)[: len(slots)]
                for weight, slot in zip(weights, slots, strict=True):
                    out[0, row.first + i, head] += weight * read_values[slot, kv_head]
    return out.to(q.dtype)
