"""Tensors by content: what they are, without their bytes."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

# Names as safetensors headers spell them; sizes in bytes. Sub-byte formats come with quantised blocks.
DTYPE_BYTES: dict[str, int] = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I32": 4, "I64": 8, "U8": 1, "BOOL": 1}

# Spec and torch spelling of the dtypes that values may have -> safetensors spelling.
DTYPE_CODE: dict[str, str] = {
    "bfloat16": "BF16", "float16": "F16", "float32": "F32", "int64": "I64", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
DTYPE_NAME: dict[str, str] = {code: name for name, code in DTYPE_CODE.items()}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class TensorRef:
    """A tensor by content.

    ``digest`` covers dtype, shape and little-endian bytes, taken *after* checkpoint conversion, tying and the cast
    to the dtype of the spec: a float32 re-save of a bfloat16 model is the same tensor.
    """

    digest: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def tensor_digest(dtype: str, shape: tuple[int, ...], data: memoryview | bytes) -> str:
    """SHA-256 (hex) of a tensor's dtype, shape and contiguous little-endian bytes."""
    hasher = hashlib.sha256(f"tensor v1 {dtype} {','.join(map(str, shape))}\n".encode())
    hasher.update(data)
    return hasher.hexdigest()
