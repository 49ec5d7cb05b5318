"""Keys and values in the dtype of the cache, which may be narrower than the model's.

In: what a model computes. Out: what is cached, and what attention therefore reads. Invariant: attention reads what the
cache holds even of the tokens of its own launch, so that an answer does not depend on how its prompt was cut. Whole
numbers (`INT8`) have a scale for each head of each token, so that nothing that is written later changes what is there.
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8, INT8 = torch.float8_e4m3fn, torch.int8
# The largest number that e4m3 has, and the largest whole number that is used.
FP8_MOST, INT8_MOST = 448.0, 127.0
# From this on GPUs convert to and from e4m3 by themselves.
_CAPABILITY = (8, 9)


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As it is cached, where that has no scale. What e4m3 cannot hold becomes its largest number; NaN stays."""
    if x.dtype == dtype:
        return x
    return (x.clamp(-FP8_MOST, FP8_MOST) if dtype == FP8 else x).to(dtype)


def whole(x: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers int8 ``[..., D]`` of ``x``, and by what each vector of them is multiplied, float32 ``[...]``.

    A vector with anything that is not finite is NaN as a whole.
    """
    wide = x.float()
    most = wide.abs().amax(-1)
    scales = most / most.new_full((), INT8_MOST)  # CUDA multiplies by one over a number that the host gives
    scales = torch.where(scales.isfinite(), scales, torch.nan)
    held = (scales > 0)[..., None]
    codes = torch.where(held, wide, 0.0) / torch.where(held, scales[..., None], 1.0)
    return codes.round().clamp(-INT8_MOST, INT8_MOST).to(INT8), scales


def widened(codes: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What a cache holds, as it is read: ``codes [..., D]``, ``scales [...]`` those of whole numbers."""
    return codes.to(dtype) if scales is None else (codes.float() * scales[..., None]).to(dtype)


def as_cached(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As it is read, in its own dtype."""
    if x.dtype == dtype:
        return x
    return widened(*whole(x), x.dtype) if dtype == INT8 else narrowed(x, dtype).to(x.dtype)


def as_bytes(cache: Tensor) -> Tensor:
    """What torch indexes: of one byte a value it knows whole numbers alone."""
    return cache.view(torch.uint8) if cache.dtype == FP8 else cache


def kernel_problem(cache: Tensor) -> str | None:
    """Why Triton's kernels do not read and write such a cache ``[slots, K, D]`` where it lies; None: they do."""
    if cache.shape[2] % 2:
        return f"its heads have {cache.shape[2]} values, an odd number"  # keys are written by halves
    if cache.dtype == FP8 and cache.is_cuda and torch.cuda.get_device_capability(cache.device) < _CAPABILITY:
        return "it is of fp8, which this device does not convert by itself"
    return None
