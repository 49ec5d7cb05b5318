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
# Those of keys and values that are cached: of no weights is a value one byte with an exponent, or a whole number.
CACHE_DTYPE_BYTES: dict[str, int] = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "I8": 1}
CACHE_DTYPE_CODE: dict[str, str] = {**DTYPE_CODE, "float8_e4m3fn": "F8_E4M3", "int8": "I8"}
# What stands beside each key and each value: a float32 by which whole numbers are multiplied.
_CACHE_SCALE_BYTES: dict[str, int] = {"I8": 4}


def cached_bytes(dtype: str, size: int) -> int:
    """Bytes of one key, or one value, of ``size`` numbers in a cache: of one token and one head."""
    return size * CACHE_DTYPE_BYTES[dtype] + _CACHE_SCALE_BYTES.get(dtype, 0)


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
    def parts(self) -> tuple[TensorRef, ...]:
        """The tensors that it is kept as: itself."""
        return (self,)

    @property
    def nbytes(self) -> int:
        """Bytes of the values as they are kept."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class QuantizedRef(TensorRef):
    """A matrix ``[out, in]`` kept as integers: ``(codes - 2^(bits-1)) * scale + shift``, group by group of a row.

    ``codes`` U8 ``[out, in * bits / 8]``, the first value in the lowest bits; ``scale`` and ``shift``
    ``[out, in / group]`` in the dtype of the matrix; without a ``shift`` it is 0. The digest covers all of that, for
    it is another function than the matrix that it was made of.
    """

    codes: TensorRef
    scale: TensorRef
    shift: TensorRef | None = None
    bits: int
    group: int

    @property
    def parts(self) -> tuple[TensorRef, ...]:
        """The tensors that it is kept as."""
        return (self.codes, self.scale) if self.shift is None else (self.codes, self.scale, self.shift)

    @property
    def nbytes(self) -> int:
        """Bytes of its parts."""
        return sum(part.nbytes for part in self.parts)


def quantized_ref(
    shape: tuple[int, ...], codes: TensorRef, scale: TensorRef, shift: TensorRef | None, *, bits: int, group: int
) -> QuantizedRef:
    """The matrix of ``shape`` that is kept as these parts."""
    digests = [part.digest for part in (codes, scale) + (() if shift is None else (shift,))]
    text = f"quantized v1 {scale.dtype} {','.join(map(str, shape))} {bits} {group} {' '.join(digests)}"
    return QuantizedRef(
        digest=hashlib.sha256(text.encode()).hexdigest(), dtype=scale.dtype, shape=shape,
        codes=codes, scale=scale, shift=shift, bits=bits, group=group,
    )  # fmt: skip


def tensor_digest(dtype: str, shape: tuple[int, ...], data: memoryview | bytes) -> str:
    """SHA-256 (hex) of a tensor's dtype, shape and contiguous little-endian bytes."""
    hasher = hashlib.sha256(f"tensor v1 {dtype} {','.join(map(str, shape))}\n".encode())
    hasher.update(data)
    return hasher.hexdigest()
