"""``Zoo``: a directory of packs (tensors) and blobs, everything named by the digest of its content.

    zoo/packs/<digest of names>.safetensors   zoo/blobs/<sha256>   zoo/.lock

In: tensors and bytes. Out: the same, verified on first read. Invariant: what carries a final name
was written in full; there is no index that could disagree with the packs, it is rebuilt from their
headers. Any number of processes may read and write one zoo at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from blockc.diag import DiagnosticError, Diagnostics
from blockc.ir.tensor import TensorRef, tensor_digest
from blockc.zoo.atomic import TEMPORARY_SUFFIX, sync_directory, write_atomically, writer_lock
from blockc.zoo.header import HeaderError, TensorSpan, format_header
from blockc.zoo.pack import (
    DIGEST,
    PACK_FILE,
    map_pack,
    pack_file_name,
    pack_order,
    read_pack_spans,
)

# A callable where making the bytes takes memory: it is called when its turn comes, one tensor at a
# time.
TensorBytes = bytes | memoryview | Callable[[], bytes | memoryview]

# Linux maps what lies around a byte that is read (`fault_around_bytes`), so neighbours leave with a tensor.
_MAPPED_AROUND_BYTES = 64 << 10

_HEAL = "delete that file and compile again: the zoo stores again what it lacks"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor's contiguous little-endian bytes, read-only over mmap.

    The mapping lives as long as ``data`` does.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A tensor in a pack of ``file_bytes``."""

    pack: str
    file_bytes: int
    span: TensorSpan


class Zoo:
    """See the module's text.

    Every error is a :class:`DiagnosticError`: BC903 damaged, BC904 missing, BC003 I/O.
    """

    def __init__(self, root: Path, *, create: bool = False) -> None:
        self.root = root
        self._packs = root / "packs"
        self._blobs = root / "blobs"
        self._places: dict[str, _Place] = {}
        self._indexed: set[str] = set()
        self._damaged: dict[str, HeaderError] = {}
        self._verified: set[str] = set()
        # Weak, because a mapping holds a file descriptor for as long as it lives.
        self._maps: weakref.WeakValueDictionary[str, mmap.mmap] = weakref.WeakValueDictionary()
        if create:
            with _io_errors(root):
                for directory in (root, self._packs, self._blobs):
                    directory.mkdir(parents=True, exist_ok=True)
                    sync_directory(directory.parent)
        elif not (self._packs.is_dir() and self._blobs.is_dir()):
            _fail(
                "BC904",
                f"there is no zoo at {root}",
                help="name it with `--zoo DIR`, or compile the spec",
            )
        self._refresh()

    # Tensors

    def put_tensors(self, items: Iterable[tuple[TensorRef, TensorBytes]]) -> None:
        """Store those of ``items`` that the zoo lacks as one pack, all or none.

        ``items`` is listed before the first byte is written, because the header comes first; see
        ``TensorBytes``.
        """
        offered = {ref.digest: (ref, data) for ref, data in items}
        if not offered:
            return
        with self._writing():
            self._refresh()
            lacking = pack_order(ref for digest, (ref, _) in offered.items() if digest not in self._places)
            if lacking:
                name = pack_file_name(ref.digest for ref in lacking)
                parts = ((ref, offered[ref.digest][1]) for ref in lacking)
                write_atomically(self._packs / name, _pack_parts(format_header(lacking), parts))
                self._refresh()

    def has_tensor(self, digest: str) -> bool:
        """Whether the zoo holds the tensor (its bytes are verified when it is read)."""
        return self._place(digest) is not None

    def tensor(self, digest: str) -> StoredTensor:
        """The tensor; its bytes are compared with ``digest`` on first read."""
        stored, place = self._read(digest)
        if digest not in self._verified:
            if tensor_digest(stored.dtype, stored.shape, stored.data) != digest:
                path = self._packs / place.pack
                _fail("BC903", f"{path}: the bytes of tensor {digest} were changed", help=_HEAL)
            self._verified.add(digest)
        return stored

    def release(self, digest: str) -> None:
        """Take a tensor's mapped bytes out of this process' memory; who still reads them maps them again."""
        place = self._places.get(digest)
        mapped = None if place is None else self._maps.get(place.pack)
        if place is not None and mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            start = place.span.start // _MAPPED_AROUND_BYTES * _MAPPED_AROUND_BYTES
            end = -(-place.span.end // _MAPPED_AROUND_BYTES) * _MAPPED_AROUND_BYTES
            mapped.madvise(mmap.MADV_DONTNEED, start, min(end, len(mapped)) - start)

    def tensors_bytes(self) -> int:
        """Bytes of all distinct tensors in the zoo, without headers."""
        self._refresh()
        return sum(place.span.end - place.span.start for place in self._places.values())

    # Blobs

    def put_blob(self, data: bytes) -> str:
        """Store ``data`` and return its SHA-256 (hex)."""
        digest = hashlib.sha256(data).hexdigest()
        path = self._blobs / digest
        with _io_errors(path):
            held = path.exists() and path.read_bytes() == data
        if not held:
            with self._writing():
                write_atomically(path, (data,))
        return digest

    def blob(self, digest: str) -> bytes:
        """The bytes whose SHA-256 is ``digest``."""
        if not DIGEST.fullmatch(digest):  # the digest may come from an edited plan: never a path
            _fail("BC904", f"{digest[:80]!r} is not a digest")
        path = self._blobs / digest
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            _fail("BC904", f"the zoo at {self.root} lacks the blob {digest}", help="compile again")
        if hashlib.sha256(data).hexdigest() != digest:
            _fail("BC903", f"{path}: the bytes of this blob were changed", help=_HEAL)
        return data

    # Upkeep

    def files_bytes(self) -> int:
        """Bytes of all files of the zoo: packs with their headers, blobs, leftovers of crashes."""
        return sum(entry.stat().st_size for directory in (self._packs, self._blobs) for entry in os.scandir(directory))

    def reclaim(self) -> int:
        """Remove what crashed writers left behind; returns the bytes freed. Every put does so, too."""
        with self._writing() as freed_bytes:
            return freed_bytes

    def verify(self) -> Diagnostics:
        """Read everything: one BC903 for each damaged pack header, tensor and blob."""
        diags = Diagnostics()
        self._refresh()
        self._verified.clear()
        for name, damage in sorted(self._damaged.items()):
            diags.items += _damage(self._packs / name, damage).items
        for path in sorted(self._packs.iterdir()):
            for span in self._spans_again(path, diags):
                _collect(diags, self.tensor, span.name)
        for path in sorted(self._blobs.iterdir()):
            if DIGEST.fullmatch(path.name):
                _collect(diags, self.blob, path.name)
        return diags

    def _spans_again(self, path: Path, diags: Diagnostics) -> tuple[TensorSpan, ...]:
        """A pack's tensors from its header as it is now: it may have been damaged since it was indexed."""
        if path.name not in self._indexed:
            return ()
        try:
            return read_pack_spans(path)
        except HeaderError as error:
            diags.items += _damage(path, error).items
            return ()

    # Index

    def _refresh(self) -> None:
        """Read the headers of packs that appeared.

        Damaged ones are remembered and looked at again each time.
        """
        with _io_errors(self._packs):
            names = [name for name in os.listdir(self._packs) if PACK_FILE.fullmatch(name)]
        for name in sorted(set(names) - self._indexed):
            path = self._packs / name
            try:
                spans = read_pack_spans(path)
            except FileNotFoundError:
                continue  # collected since it was listed
            except HeaderError as error:
                self._damaged[name] = error
                continue
            self._damaged.pop(name, None)
            self._indexed.add(name)
            file_bytes = max(span.end for span in spans) if spans else 0
            for span in spans:
                place = _Place(pack=name, file_bytes=file_bytes, span=span)
                self._places.setdefault(span.name, place)

    def _forget(self, pack: str) -> None:
        self._indexed.discard(pack)
        self._places = {d: place for d, place in self._places.items() if place.pack != pack}

    def _place(self, digest: str) -> _Place | None:
        if digest not in self._places:
            self._refresh()
        return self._places.get(digest)

    def _read(self, digest: str) -> tuple[StoredTensor, _Place]:
        """The tensor, not yet verified."""
        while (place := self._place(digest)) is not None:
            mapped = self._maps.get(place.pack)
            if mapped is None:
                path = self._packs / place.pack
                try:
                    mapped = map_pack(path, file_bytes=place.file_bytes)
                except FileNotFoundError:
                    self._forget(place.pack)  # collected since it was indexed
                    continue
                except HeaderError as error:
                    raise DiagnosticError(_damage(path, error, digest)) from error
                self._maps[place.pack] = mapped
            span = place.span
            data = memoryview(mapped)[span.start : span.end]
            return StoredTensor(dtype=span.dtype, shape=span.shape, data=data), place
        if self._damaged:
            name = min(self._damaged)
            raise DiagnosticError(_damage(self._packs / name, self._damaged[name], digest))
        return _fail("BC904", f"the zoo at {self.root} lacks the tensor {digest[:80]}", help="compile again")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[int]:
        """Hold the writers' lock, with leftovers removed; yields how many bytes that freed."""
        freed_bytes = 0
        with _io_errors(self.root), writer_lock(self.root / ".lock") as held:
            leftovers = (
                entry
                for directory in (self._packs, self._blobs)
                for entry in os.scandir(directory)
                if held and entry.name.endswith(TEMPORARY_SUFFIX)
            )
            for entry in leftovers:
                freed_bytes += entry.stat().st_size
                os.unlink(entry.path)
            yield freed_bytes


def _pack_parts(header: bytes, tensors: Iterable[tuple[TensorRef, TensorBytes]]) -> Iterator[bytes | memoryview]:
    """A pack's bytes, one tensor in memory at a time; what is offered is checked before it is written."""
    yield header
    for ref, source in tensors:
        data = source() if callable(source) else source
        if tensor_digest(ref.dtype, ref.shape, data) != ref.digest:
            _fail(
                "BC903",
                f"the bytes offered for tensor {ref.digest} do not match it",
                notes=("the file that they were read from changed in the meantime",),
                help="compile again when nothing writes to the models' files",
            )
        yield data


def _collect(diags: Diagnostics, read: Callable[[str], object], digest: str) -> None:
    try:
        read(digest)
    except DiagnosticError as error:
        diags.items += error.diagnostics.items


def _damage(path: Path, error: HeaderError, wanted: str | None = None) -> Diagnostics:
    """BC903 for a pack; ``wanted`` is the tensor that could not be had because of it."""
    diags = Diagnostics()
    guilty = f" tensor {error.tensor[:80]}:" if error.tensor is not None else ""
    notes = () if wanted is None else (f"the tensor {wanted[:80]} may lie in it",)
    diags.report("BC903", f"{path}:{guilty} {error}", notes=notes, help=_HEAL)
    return diags


def _fail(
    code: str,
    message: str,
    *,
    notes: tuple[str, ...] = (),
    help: str | None = None,  # noqa: A002 - the field's established name
) -> NoReturn:
    diags = Diagnostics()
    diags.report(code, message, notes=notes, help=help)
    raise DiagnosticError(diags)


@contextlib.contextmanager
def _io_errors(path: Path) -> Iterator[None]:
    """No space, no permission: a diagnostic, not a traceback."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        _fail("BC003", f"the zoo cannot be used: {where}: {error.strerror or error}")
