"""Dtypes as safetensors and plans spell them -> torch's."""

from __future__ import annotations

import torch

from blockc.ir.tensor import DTYPE_NAME

_OTHERS = {
    "F64": torch.float64, "I32": torch.int32, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip


def torch_dtype(code: str) -> torch.dtype:
    """``"BF16"`` -> ``torch.bfloat16``. Raises KeyError for codes that plans do not use."""
    if code in _OTHERS:
        return _OTHERS[code]
    dtype: torch.dtype = getattr(torch, DTYPE_NAME[code])
    return dtype
