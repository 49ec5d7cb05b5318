"""The safetensors header: 8 bytes of length (little endian), JSON, then the tensors' bytes.

In: the first bytes of a file and its size. Out: where each tensor lies, or :class:`HeaderError`
naming the tensor. Invariant: every byte of an accepted file belongs to exactly one of length,
header and tensors, so a truncation, an overlap or trailing bytes cannot pass.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from blockc.ir.strict_json import StrictJsonError, parse_strict_json
from blockc.ir.tensor import DTYPE_BYTES, TensorRef

LENGTH_BYTES: Final = 8
MAX_HEADER_BYTES: Final = 100_000_000  # the format's own limit
_ALIGNMENT_BYTES: Final = 64  # of the first tensor: a cache line, and any vector load
_METADATA: Final = {"format": "blockc pack 1"}
_MAX_RANK: Final = 64


class HeaderError(ValueError):
    """A header that cannot be trusted. ``tensor`` names the guilty one where there is one."""

    def __init__(self, message: str, *, tensor: str | None = None) -> None:
        super().__init__(message)
        self.tensor = tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpan:
    """A tensor's place: bytes ``start`` to ``end`` of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def format_header(refs: Iterable[TensorRef]) -> bytes:
    """Return length and JSON for tensors that follow in this order, each named by its digest."""
    entries: dict[str, Any] = {"__metadata__": _METADATA}
    offset = 0
    for ref in refs:
        end = offset + ref.nbytes
        entries[ref.digest] = {
            "dtype": ref.dtype,
            "shape": list(ref.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    text += b" " * (-(LENGTH_BYTES + len(text)) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def header_bytes(length_field: bytes, file_bytes: int) -> int:
    """Return the size of the JSON that follows ``length_field``, checked against the size of the file."""
    if len(length_field) < LENGTH_BYTES:
        raise HeaderError(f"the file ends after {file_bytes} bytes, inside its header's length")
    size = int.from_bytes(length_field, "little")
    if size > MAX_HEADER_BYTES:
        raise HeaderError(f"a header of {size} bytes is beyond the format's limit")
    if LENGTH_BYTES + size > file_bytes:
        raise HeaderError(f"the file ends after {file_bytes} bytes, inside its header of {size}")
    return size


def parse_header(text: bytes, *, file_bytes: int) -> tuple[TensorSpan, ...]:
    """Return the tensors, in order of place, of a file whose header's JSON is ``text``."""
    if not text.startswith(b"{"):
        raise HeaderError("the header is not a JSON object")
    try:
        entries = parse_strict_json(text)
    except StrictJsonError as error:
        raise HeaderError(f"the header is not JSON: {error}") from error
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise HeaderError("the header's metadata is not a table of strings")
    data_start = LENGTH_BYTES + len(text)
    spans = [_span(name, entry, data_start) for name, entry in entries.items()]
    spans.sort(key=lambda span: (span.start, span.end))
    _check_places(spans, data_start, file_bytes)
    return tuple(spans)


def _span(name: str, entry: Any, data_start: int) -> TensorSpan:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise HeaderError("an entry has exactly dtype, shape and data_offsets", tensor=name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise HeaderError(f"unknown dtype {str(dtype)[:40]!r}", tensor=name)
    if not _is_sizes(shape) or len(shape) > _MAX_RANK:
        raise HeaderError("a shape is a list of sizes", tensor=name)
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise HeaderError("data_offsets are two offsets", tensor=name)
    start, end = offsets
    nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - start != nbytes:
        raise HeaderError(f"{dtype}{shape} takes {nbytes} bytes, its offsets span {end - start}", tensor=name)
    return TensorSpan(name=name, dtype=dtype, shape=tuple(shape), start=data_start + start, end=data_start + end)


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_places(spans: list[TensorSpan], data_start: int, file_bytes: int) -> None:
    """Tensors follow each other without overlap or hole and fill the file exactly."""
    position = data_start
    for span in spans:
        if span.start != position:
            what = "overlaps the one before it" if span.start < position else "follows a hole"
            raise HeaderError(f"at byte {span.start} it {what}", tensor=span.name)
        if span.end > file_bytes:
            raise HeaderError(f"it ends at byte {span.end}, the file at {file_bytes}", tensor=span.name)
        position = span.end
    if position != file_bytes:
        raise HeaderError(f"{file_bytes - position} bytes follow the last tensor")
