"""A pack: one safetensors file with the tensors of one put, named by the digest of their names.

In: a path. Out: where its tensors lie, and their bytes through mmap. Invariant: an accepted pack's
header is byte for byte the one that this version writes for its tensors, and its file name the
digest of their names; with each tensor named by the digest of its content no flipped bit passes.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from blockc.ir.tensor import DTYPE_BYTES, TensorRef
from blockc.zoo.header import (
    LENGTH_BYTES,
    HeaderError,
    TensorSpan,
    format_header,
    header_bytes,
    parse_header,
)

DIGEST: Final = re.compile(r"[0-9a-f]{64}")
PACK_FILE: Final = re.compile(r"[0-9a-f]{64}\.safetensors")


def pack_order(refs: Iterable[TensorRef]) -> list[TensorRef]:
    """The order in a pack: wide elements first, so that each tensor is aligned to its own; then by digest."""
    return sorted(refs, key=lambda ref: (-DTYPE_BYTES[ref.dtype], ref.digest))


def pack_file_name(digests: Iterable[str]) -> str:
    """The file name of the pack of these tensors."""
    names = "\n".join(sorted(digests))
    return hashlib.sha256(f"pack v1\n{names}".encode()).hexdigest() + ".safetensors"


def read_pack_spans(path: Path) -> tuple[TensorSpan, ...]:
    """Where the tensors of the pack lie. Raises :class:`HeaderError`, FileNotFoundError."""
    with path.open("rb", buffering=0) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        length_field = file.read(LENGTH_BYTES) or b""
        size = header_bytes(length_field, file_bytes)
        text = file.read(size) or b""
    spans = parse_header(text, file_bytes=file_bytes)
    for span in spans:
        if not DIGEST.fullmatch(span.name):
            raise HeaderError("its name is not a digest", tensor=span.name)
    refs = [TensorRef(digest=span.name, dtype=span.dtype, shape=span.shape) for span in spans]
    if format_header(pack_order(refs)) != length_field + text:
        raise HeaderError("the header is not the one that was written for these tensors")
    if pack_file_name(span.name for span in spans) != path.name:
        raise HeaderError("the tensors in it are not those that its file name stands for")
    return spans


def map_pack(path: Path, *, file_bytes: int) -> mmap.mmap:
    """The pack's bytes, read-only. Raises :class:`HeaderError` if its size has changed."""
    with path.open("rb") as file:
        actual_bytes = os.fstat(file.fileno()).st_size
        # A mapping longer than its file ends the process (SIGBUS) instead of raising.
        if actual_bytes != file_bytes:
            raise HeaderError(f"the file has {actual_bytes} bytes, {file_bytes} when it was indexed")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
