"""One token at a time: at position p the fine-tune's p-th key and value if it has one, else what was computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cached(
    k: Tensor, v: Tensor, positions: Sequence[int], prefixes: Sequence[tuple[Tensor, Tensor] | None]
) -> tuple[Tensor, Tensor]:
    """``k`` and ``v [1,K,T,D]``; for each token its position and its fine-tune's keys and values ``[n,K,D]``."""
    keys, values = [], []
    for token, (position, own) in enumerate(zip(positions, prefixes, strict=True)):
        replaced = own is not None and position < len(own[0])
        keys.append(own[0][position] if own is not None and replaced else k[0, :, token])
        values.append(own[1][position] if own is not None and replaced else v[0, :, token])
    return torch.stack(keys, 1)[None], torch.stack(values, 1)[None]
