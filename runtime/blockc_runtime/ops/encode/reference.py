"""Attention in both directions and pooling, one text, one head and one token at a time, in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# First token and number of tokens of each text on the token axis.
Spans = Sequence[tuple[int, int]]


def encode(
    q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """``q [1,H,T,D]``, ``k`` and ``v [1,K,T,D]`` -> ``[1,T,H,D]``. Tokens see each other less than ``window`` apart."""
    heads, kv_heads = q.shape[1], k.shape[1]
    out = torch.zeros(1, q.shape[2], heads, q.shape[3])
    for first, count in spans:
        for token in range(first, first + count):
            seen = [o for o in range(first, first + count) if window is None or abs(o - token) < window]
            for head in range(heads):
                kv_head = head * kv_heads // heads
                scores = [float(q[0, head, token].float() @ k[0, kv_head, other].float()) * scale for other in seen]
                if softcap is not None:
                    scores = [math.tanh(score / softcap) * softcap for score in scores]
                for weight, other in zip(torch.softmax(torch.tensor(scores), 0), seen, strict=True):
                    out[0, token, head] += weight * v[0, kv_head, other].float()
    return out.to(q.dtype)


def pool(x: Tensor, spans: Spans, mode: str) -> Tensor:
    """``x [1,T,F]`` -> ``[R,F]``: ``first``, ``last``, ``mean`` or ``sum`` of each text's tokens."""
    rows = []
    for first, count in spans:
        text = x[0, first : first + count].float()
        total = sum((text[i] for i in range(1, count)), text[0])
        rows.append({"first": text[0], "last": text[-1], "sum": total, "mean": total / count}[mode])
    return torch.stack(rows).to(x.dtype)
