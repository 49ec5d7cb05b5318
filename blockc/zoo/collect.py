"""Collection: remove what no plan needs.

In: a zoo, plans to keep beside those that it has references to, references to end. Out: what was removed. Invariant:
whatever a referenced plan, a kept one or a lease in force names stays, and stays readable at every instant; after a
crash the next collection goes on. What a plan names is found by its bytes alone: every digest that stands in its
file, and in blobs that are named so, counts, whatever version wrote it.

Packs are never changed. One of which a part is needed is written anew with that part, then the old one is removed;
readers that have mapped it keep their mapping, and others look again where a pack is gone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from blockc.diag import DiagnosticError, Diagnostics
from blockc.ir.tensor import TensorRef
from blockc.zoo.atomic import sync_directory, write_atomically
from blockc.zoo.errors import fail, io_errors
from blockc.zoo.header import TensorSpan, format_header
from blockc.zoo.lease import leased, sweep
from blockc.zoo.pack import pack_file_name, pack_order
from blockc.zoo.reference import Reference, end, references
from blockc.zoo.store import Zoo

_NAMED: Final = re.compile(rb"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackWork:
    """What becomes of a pack: ``keeps`` are tensors that move to a new one, ``drops`` those that nothing else keeps."""

    name: str
    keeps: tuple[TensorSpan, ...]
    drops: tuple[TensorSpan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection removes, or would. ``bytes`` are of values, without headers."""

    ended: tuple[Reference, ...]
    packs: tuple[PackWork, ...]
    blobs: Mapping[str, int]
    kept_tensors: int
    kept_bytes: int
    files_bytes_before: int
    files_bytes_after: int | None  # None: nothing was done


def collect(
    zoo: Zoo, *, keep: Sequence[bytes] = (), ended: Sequence[Reference] = (), dry_run: bool = False, diags: Diagnostics
) -> Collected:
    """Remove what neither a reference, nor a plan file in ``keep``, nor a lease in force names.

    ``ended`` references are removed first. Raises `DiagnosticError` before anything is removed if what a plan needs
    cannot be read (BC903, BC904) or writers cannot be kept out (BC908). A pack whose needed part is damaged is
    reported and left as it is.
    """
    if dry_run:
        return _planned(zoo, keep, ended)
    with zoo.writing(require_lock=True):
        found = _planned(zoo, keep, ended)
        with io_errors(zoo.root):
            end(zoo, found.ended)
            sweep(zoo.leases)
            # What frees space goes first: on a full disk there is room for the rest afterwards.
            for work in sorted(found.packs, key=lambda work: (len(work.keeps) > 0, work.name)):
                _do(zoo, work, diags)
            for digest in found.blobs:
                _unlink(zoo, "blobs", digest)
            for directory in ("packs", "blobs"):
                sync_directory(zoo.root / directory)
        diags.items += zoo.damaged_packs().items
        after = zoo.files_bytes()
    return Collected(
        ended=found.ended,
        packs=found.packs,
        blobs=found.blobs,
        kept_tensors=found.kept_tensors,
        kept_bytes=found.kept_bytes,
        files_bytes_before=found.files_bytes_before,
        files_bytes_after=after,
    )


def named(
    zoo: Zoo, roots: Iterable[str], *, tensors: Iterable[str], blobs: Iterable[str], diags: Diagnostics | None = None
) -> set[str]:
    """Tensors and blobs among those given that ``roots`` and the blobs reached from them name.

    Raises `DiagnosticError` for a damaged blob, whose names are not known; with ``diags`` that is reported there.
    """
    blobs = set(blobs)
    known = blobs.union(tensors)
    pending = known.intersection(roots)
    found: set[str] = set()
    while pending:
        digest = pending.pop()
        found.add(digest)
        if digest in blobs:
            try:
                pending |= (_digests(zoo.blob(digest)) & known) - found
            except DiagnosticError as error:
                if diags is None:
                    raise
                diags.items += error.diagnostics.items
    return found


def _digests(data: bytes) -> set[str]:
    return {match.decode() for match in _NAMED.findall(data)}


def _planned(zoo: Zoo, keep: Sequence[bytes], ended: Sequence[Reference]) -> Collected:
    packs, blobs = zoo.packs(), zoo.blobs()
    gone = set(ended)
    roots = leased(zoo.leases)
    for data in keep:
        roots |= _digests(data)
    for reference in references(zoo):
        if reference in gone:
            continue
        if reference.plan not in blobs:
            fail(
                "BC904",
                f"the zoo at {zoo.root} lacks its copy of the plan {reference.plan[:12]} ({reference.place})",
                notes=("what that plan needs is not known, so nothing is collected",),
                help=f"compile it again, or end its reference: `blockc zoo gc --forget {reference.plan[:12]}`",
            )
        roots.add(reference.plan)
    needed = named(zoo, roots, tensors=(span.name for spans in packs.values() for span in spans), blobs=blobs)
    homes = {span.name: span for spans in packs.values() for span in spans if span.name in needed}
    return Collected(
        ended=tuple(sorted(gone)),
        packs=tuple(_pack_work(packs, needed)),
        blobs={digest: nbytes for digest, nbytes in blobs.items() if digest not in needed},
        kept_tensors=len(homes),
        kept_bytes=sum(span.end - span.start for span in homes.values()),
        files_bytes_before=zoo.files_bytes(),
        files_bytes_after=None,
    )


def _pack_work(packs: Mapping[str, tuple[TensorSpan, ...]], needed: set[str]) -> Iterator[PackWork]:
    """Packs that are not to stay as they are. A tensor that lies in several packs stays in one."""
    whole = {name for name, spans in packs.items() if all(span.name in needed for span in spans)}
    at_home: set[str] = set()
    for name in sorted(packs, key=lambda name: (name not in whole, name)):
        spans = packs[name]
        keeps = tuple(span for span in spans if span.name in needed and span.name not in at_home)
        at_home.update(span.name for span in keeps)
        if len(keeps) < len(spans) or not spans:
            drops = tuple(span for span in spans if span.name not in needed)
            yield PackWork(name=name, keeps=keeps, drops=drops)


def _do(zoo: Zoo, work: PackWork, diags: Diagnostics) -> None:
    if work.keeps:
        refs = pack_order(TensorRef(digest=span.name, dtype=span.dtype, shape=span.shape) for span in work.keeps)
        target = zoo.root / "packs" / pack_file_name(ref.digest for ref in refs)
        try:
            write_atomically(target, _parts(zoo, refs))
        except DiagnosticError as error:
            diags.items += error.diagnostics.items
            return
    _unlink(zoo, "packs", work.name)


def _parts(zoo: Zoo, refs: Sequence[TensorRef]) -> Iterator[bytes | memoryview]:
    yield format_header(refs)
    for ref in refs:
        yield zoo.tensor(ref.digest).data


def _unlink(zoo: Zoo, directory: str, name: str) -> None:
    os.unlink(zoo.root / directory / name)
