"""Attention in both directions and pooling with torch's own kernels, on any device.

In: as in `reference.py`. Out: the same. Invariant: a text is seen by its own tokens only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from blockc_runtime.ops.encode.reference import Spans


def encode(
    q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """``q [1,H,T,D]``, ``k`` and ``v [1,K,T,D]`` -> ``[1,T,H,D]``."""
    parts = [
        _one_text(*(tensor[:, :, first : first + count] for tensor in (q, k, v)), scale, window, softcap)
        for first, count in spans
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 2)).transpose(1, 2)


def _one_text(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    mask = None
    if window is not None and window < q.shape[2]:
        place = torch.arange(q.shape[2], device=q.device)
        mask = (place[:, None] - place).abs() < window
    if softcap is None:
        return scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    repeats = q.shape[1] // k.shape[1]
    keys, values = (tensor.repeat_interleave(repeats, 1) for tensor in (k, v))
    scores = torch.tanh((q @ keys.transpose(2, 3)).float() * (scale / softcap)) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, -1).to(v.dtype) @ values


def pool(x: Tensor, spans: Spans, mode: str) -> Tensor:
    """``x [1,T,F]`` -> ``[R,F]``, sums in float32."""
    match mode:
        case "first":
            return x[0, [first for first, _ in spans]]
        case "last":
            return x[0, [first + count - 1 for first, count in spans]]
        case "mean":
            return torch.stack([x[0, first : first + count].float().mean(0) for first, count in spans]).to(x.dtype)
        case "sum":
            return torch.stack([x[0, first : first + count].float().sum(0) for first, count in spans]).to(x.dtype)
    raise ValueError(f"no pooling is called {mode!r}")
