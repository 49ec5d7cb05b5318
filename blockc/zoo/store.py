"""``Zoo``: a directory of packs (tensors) and blobs, everything named by the digest of its content.

    zoo/packs/<digest of names>.safetensors   zoo/blobs/<sha256>   zoo/plans/   zoo/leases/   zoo/.lock

In: tensors and bytes. Out: the same, verified on first read. Invariant: what carries a final name
was written in full; there is no index that could disagree with the packs, it is rebuilt from their
headers. Any number of processes may read and write one zoo at once, and one may collect what no plan
needs: what a living process has put, or found when it wanted to put it, stays (see ``lease``).
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from blockc.diag import DiagnosticError, Diagnostics
from blockc.ir.tensor import TensorRef, tensor_digest
from blockc.zoo.atomic import TEMPORARY_SUFFIX, sync_directory, write_atomically, writer_lock
from blockc.zoo.errors import HEAL, fail, io_errors
from blockc.zoo.header import HeaderError, TensorSpan, format_header
from blockc.zoo.lease import Lease, sweep
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

    def __init__(self, root: Path, *, create: bool = False, on_wait: Callable[[], None] = lambda: None) -> None:
        self.root = root
        self._packs = root / "packs"
        self._blobs = root / "blobs"
        self.plans = root / "plans"
        self.leases = root / "leases"
        self._on_wait = on_wait
        self._lease: Lease | None = None
        self._places: dict[str, _Place] = {}
        self._indexed: dict[str, tuple[TensorSpan, ...]] = {}
        self._damaged: dict[str, HeaderError] = {}
        self._verified: set[str] = set()
        # Weak, because a mapping holds a file descriptor for as long as it lives.
        self._maps: weakref.WeakValueDictionary[str, mmap.mmap] = weakref.WeakValueDictionary()
        if create:
            with io_errors(root):
                for directory in (root, self._packs, self._blobs, self.plans, self.leases):
                    directory.mkdir(parents=True, exist_ok=True)
                    sync_directory(directory.parent)
        elif not (self._packs.is_dir() and self._blobs.is_dir()):
            fail(
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
        with self.writing():
            self._hold(offered)
            self._refresh()
            lacking = pack_order(ref for digest, (ref, _) in offered.items() if digest not in self._places)
            if lacking:
                name = pack_file_name(ref.digest for ref in lacking)
                parts = ((ref, offered[ref.digest][1]) for ref in lacking)
                write_atomically(self._packs / name, _pack_parts(format_header(lacking), parts))
                self._refresh()

    def has_tensor(self, digest: str) -> bool:
        """Whether the zoo holds the tensor (its bytes are verified when it is read).

        Only putting it keeps it from a collection: whoever goes on to write a plan offers it again.
        """
        return self._place(digest) is not None

    def tensor(self, digest: str) -> StoredTensor:
        """The tensor; its bytes are compared with ``digest`` on first read."""
        stored, place = self._read(digest)
        if digest not in self._verified:
            if tensor_digest(stored.dtype, stored.shape, stored.data) != digest:
                path = self._packs / place.pack
                fail("BC903", f"{path}: the bytes of tensor {digest} were changed", help=HEAL)
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
        with self.writing():
            self._hold((digest,))
            if not path.exists() or path.read_bytes() != data:
                write_atomically(path, (data,))
        return digest

    def blob(self, digest: str) -> bytes:
        """The bytes whose SHA-256 is ``digest``."""
        if not DIGEST.fullmatch(digest):  # the digest may come from an edited plan: never a path
            fail("BC904", f"{digest[:80]!r} is not a digest")
        path = self._blobs / digest
        try:
            with io_errors(path, but=FileNotFoundError):
                data = path.read_bytes()
        except FileNotFoundError:
            fail("BC904", f"the zoo at {self.root} lacks the blob {digest}", help="compile again")
        if hashlib.sha256(data).hexdigest() != digest:
            fail("BC903", f"{path}: the bytes of this blob were changed", help=HEAL)
        return data

    # Upkeep

    def packs(self) -> Mapping[str, tuple[TensorSpan, ...]]:
        """The tensors of each pack, by file name. Packs whose header is damaged are left out."""
        self._refresh()
        return dict(sorted(self._indexed.items()))

    def blobs(self) -> Mapping[str, int]:
        """Bytes of each blob, by digest."""
        with io_errors(self._blobs):
            found = [entry for entry in os.scandir(self._blobs) if DIGEST.fullmatch(entry.name)]
            return {entry.name: _size(entry) for entry in sorted(found, key=lambda entry: entry.name)}

    def damaged_packs(self) -> Diagnostics:
        """One BC903 for each pack whose header is damaged, so that nothing in it can be read."""
        self._refresh()
        diags = Diagnostics()
        for name, damage in sorted(self._damaged.items()):
            diags.items += _damage(self._packs / name, damage).items
        return diags

    def files_bytes(self) -> int:
        """Bytes of all files of the zoo: packs with their headers, blobs, leftovers of crashes."""
        return sum(_size(entry) for directory in (self._packs, self._blobs) for entry in os.scandir(directory))

    def reclaim(self) -> int:
        """Remove what crashed writers left behind; returns the bytes freed. Every put does so, too."""
        with self.writing() as freed_bytes:
            return freed_bytes

    def verify(self, on_file: Callable[[Path, int], None] = lambda path, nbytes: None) -> Diagnostics:
        """Read everything: one BC903 for each damaged pack header, tensor and blob.

        ``on_file`` is called with each pack and blob, and its bytes, before it is read.
        """
        diags = self.damaged_packs()
        self._verified.clear()
        for name in sorted(self._indexed):
            path = self._packs / name
            on_file(path, _size(path))
            for span in self._spans_again(path, diags):
                _collect(diags, self.tensor, span.name)
        for digest, nbytes in self.blobs().items():
            on_file(self._blobs / digest, nbytes)
            _collect(diags, self.blob, digest)
        return diags

    def _spans_again(self, path: Path, diags: Diagnostics) -> tuple[TensorSpan, ...]:
        """A pack's tensors from its header as it is now: it may have been damaged since it was indexed."""
        try:
            return read_pack_spans(path)
        except FileNotFoundError:
            return ()  # collected since it was listed
        except HeaderError as error:
            diags.items += _damage(path, error).items
            return ()

    # Index

    def _refresh(self) -> None:
        """Read the headers of packs that appeared, and forget those that are gone.

        Damaged ones are remembered and looked at again each time.
        """
        with io_errors(self._packs):
            names = {name for name in os.listdir(self._packs) if PACK_FILE.fullmatch(name)}
        if not names >= self._indexed.keys():
            self._forget_all()
        self._damaged = {name: damage for name, damage in self._damaged.items() if name in names}
        for name in sorted(names - self._indexed.keys()):
            path = self._packs / name
            try:
                with io_errors(path, but=FileNotFoundError):
                    spans = read_pack_spans(path)
            except FileNotFoundError:
                continue  # collected since it was listed
            except HeaderError as error:
                self._damaged[name] = error
                continue
            self._damaged.pop(name, None)
            self._indexed[name] = spans
            file_bytes = max(span.end for span in spans) if spans else 0
            for span in spans:
                place = _Place(pack=name, file_bytes=file_bytes, span=span)
                self._places.setdefault(span.name, place)

    def _forget_all(self) -> None:
        """A pack was collected: its tensors may lie in one that is known already."""
        self._indexed.clear()
        self._places.clear()

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
                    with io_errors(path, but=FileNotFoundError):
                        mapped = map_pack(path, file_bytes=place.file_bytes)
                except FileNotFoundError:
                    self._forget_all()  # collected since it was indexed
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
        return fail("BC904", f"the zoo at {self.root} lacks the tensor {digest[:80]}", help="compile again")

    @contextlib.contextmanager
    def writing(self, *, require_lock: bool = False) -> Iterator[int]:
        """Hold the writers' lock, with leftovers removed; yields how many bytes that freed.

        ``require_lock``: refuse where the file system has no locks (BC908).
        """
        freed_bytes = 0
        with io_errors(self.root), writer_lock(self.root / ".lock", on_wait=self._on_wait) as held:
            if require_lock and not held:
                fail(
                    "BC908",
                    f"the file system of {self.root} has no locks",
                    help="run this where writers of the zoo can be kept out: on the machine that the disk belongs to",
                )
            for directory in (self.plans, self.leases):
                if not directory.is_dir():  # a zoo of an earlier version
                    directory.mkdir(exist_ok=True)
                    sync_directory(self.root)
            leftovers = (
                entry
                for directory in (self._packs, self._blobs, self.plans)
                for entry in os.scandir(directory)
                if held and entry.name.endswith(TEMPORARY_SUFFIX)
            )
            for entry in leftovers:
                freed_bytes += entry.stat().st_size
                os.unlink(entry.path)
            yield freed_bytes

    def _hold(self, digests: Iterable[str]) -> None:
        """Keep what these name from collections for as long as this object lives. The lock is held."""
        if self._lease is None:
            sweep(self.leases)
            self._lease = Lease(self.leases)
        self._lease.add(digests)


def _size(file: Path | os.DirEntry[str]) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # collected since it was listed
        return 0


def _pack_parts(header: bytes, tensors: Iterable[tuple[TensorRef, TensorBytes]]) -> Iterator[bytes | memoryview]:
    """A pack's bytes, one tensor in memory at a time; what is offered is checked before it is written."""
    yield header
    for ref, source in tensors:
        data = source() if callable(source) else source
        if tensor_digest(ref.dtype, ref.shape, data) != ref.digest:
            fail(
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
        # What is missing now was collected since it was listed.
        diags.items += [item for item in error.diagnostics if item.code.id != "BC904"]


def _damage(path: Path, error: HeaderError, wanted: str | None = None) -> Diagnostics:
    """BC903 for a pack; ``wanted`` is the tensor that could not be had because of it."""
    diags = Diagnostics()
    guilty = f" tensor {error.tensor[:80]}:" if error.tensor is not None else ""
    notes = () if wanted is None else (f"the tensor {wanted[:80]} may lie in it",)
    diags.report("BC903", f"{path}:{guilty} {error}", notes=notes, help=HEAL)
    return diags
