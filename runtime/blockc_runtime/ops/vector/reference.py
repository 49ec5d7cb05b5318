"""A vector for each token: the fine-tune's where it has one, the base's elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def vector(base: Tensor, values: Tensor, slot: Sequence[int]) -> Tensor:
    """``base [n]``, ``values [N, n]``, one slot for each token, -1 for none -> ``[T, n]``."""
    return torch.stack([base if own < 0 else values[own] for own in slot])
