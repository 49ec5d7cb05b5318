"""Keys and values in the dtype of the cache, which may be narrower than the model's.

In: what a model computes. Out: what is cached, and what attention therefore reads. Invariant: attention reads what the
cache holds even of the tokens of its own launch, so that an answer does not depend on how its prompt was cut.
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
# The largest number that e4m3 has.
FP8_MOST = 448.0
# From this on GPUs convert to and from e4m3 by themselves.
_CAPABILITY = (8, 9)


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As it is cached. What e4m3 cannot hold becomes its largest number; NaN stays."""
    if x.dtype == dtype:
        return x
    return (x.clamp(-FP8_MOST, FP8_MOST) if dtype == FP8 else x).to(dtype)


def as_cached(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As it is read, in its own dtype."""
    return x if x.dtype == dtype else narrowed(x, dtype).to(x.dtype)


def as_bytes(cache: Tensor) -> Tensor:
    """What torch indexes: of one byte a value it knows whole numbers alone."""
    return cache.view(torch.uint8) if cache.dtype == FP8 else cache


def kernels_take(cache: Tensor) -> bool:
    """Whether Triton's kernels read and write such a cache where it lies."""
    return cache.dtype != FP8 or not cache.is_cuda or torch.cuda.get_device_capability(cache.device) >= _CAPABILITY
