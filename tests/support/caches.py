"""Caches of attention in any dtype, with something in them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blockc_runtime.ops.attention.cpu import PagedLayer
from blockc_runtime.ops.attention.narrow import INT8, narrowed, whole

CPU = torch.device("cpu")


def kept(caches: Sequence[Tensor], dtype: torch.dtype, page_tokens: int, device: torch.device = CPU) -> PagedLayer:
    """A layer with these keys and values in it."""
    if dtype == INT8:
        (keys, by_key), (values, by_value) = (whole(own.to(device)) for own in caches)
        return PagedLayer(keys=keys, values=values, scales=(by_key, by_value), page_tokens=page_tokens)
    keys, values = (narrowed(own, dtype).to(device, copy=True) for own in caches)
    return PagedLayer(keys=keys, values=values, page_tokens=page_tokens)
