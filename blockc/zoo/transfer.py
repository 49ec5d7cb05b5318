"""Import: tensors, blobs and references of other zoos, checked on the way in.

In: zoos to take from. Out: what was stored. Invariant: each pack comes in full or not at all, every byte was compared
with its digest, and a plan is referred to only when all that it needs is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blockc.diag import DiagnosticError, Diagnostics
from blockc.ir.tensor import TensorRef
from blockc.plan import plan_uses, read_plan
from blockc.zoo.header import TensorSpan
from blockc.zoo.reference import path_of, refer, references
from blockc.zoo.store import Zoo

_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFile:
    """A plan's file: its bytes, where it lies, and on which machine (None: this one)."""

    data: bytes
    path: Path
    host: str | None


@dataclass(slots=True, kw_only=True)
class Imported:
    """Counts of what the zoo lacked and has now. ``nbytes``: of values and blobs."""

    tensors: int = 0
    blobs: int = 0
    nbytes: int = 0
    plans: int = 0


def import_zoos(target: Zoo, sources: Sequence[Zoo], *, diags: Diagnostics) -> Imported:
    """All that the sources hold, and their references. Damage is reported, and what it touches left out."""
    done = Imported()
    for source in sources:
        before = len(diags)
        _put_packs(target, source, source.packs(), done, diags)
        _put_blobs(target, source, source.blobs(), done, diags)
        diags.items += source.damaged_packs().items
        for reference in references(source) if len(diags) == before else ():
            data = source.blob(reference.plan)
            _refer(target, PlanFile(data=data, path=path_of(source, reference), host=reference.host), done)
    return done


def import_plan(target: Zoo, sources: Sequence[Zoo], plan: PlanFile, *, diags: Diagnostics) -> Imported:
    """What a plan needs, from whichever source has it. The plan is referred to if nothing is missing or damaged."""
    done = Imported()
    blob_at = {digest: source for source in reversed(sources) for digest in source.blobs()}

    def read_blob(digest: str) -> bytes:
        return blob_at.get(digest, sources[0]).blob(digest)

    uses = plan_uses(read_plan(plan.data, str(plan.path)), read_blob, diags)
    wanted = {use.digest: use.what for use in uses}
    there: set[str] = set()
    for source in sources:
        packs = {
            name: tuple(span for span in spans if span.name in wanted and span.name not in there)
            for name, spans in source.packs().items()
        }
        there.update(span.name for spans in packs.values() for span in spans)
        _put_packs(target, source, packs, done, diags)
        own = [digest for digest, place in blob_at.items() if place is source and digest in wanted]
        there.update(own)
        _put_blobs(target, source, own, done, diags)
    _report_missing({digest: what for digest, what in wanted.items() if digest not in there}, sources, diags)
    if not diags.has_errors:
        _refer(target, plan, done)
    return done


def _put_packs(
    target: Zoo,
    source: Zoo,
    packs: Mapping[str, tuple[TensorSpan, ...]],
    done: Imported,
    diags: Diagnostics,
) -> None:
    for spans in packs.values():
        refs = [TensorRef(digest=span.name, dtype=span.dtype, shape=span.shape) for span in spans]
        lacking = [ref for ref in refs if not target.has_tensor(ref.digest)]
        try:
            target.put_tensors((ref, _Reads(source=source, digest=ref.digest)) for ref in refs)
        except DiagnosticError as error:
            diags.items += error.diagnostics.items
            continue
        done.tensors += len(lacking)
        done.nbytes += sum(ref.nbytes for ref in lacking)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reads:
    """Reads a tensor when its turn comes."""

    source: Zoo
    digest: str

    def __call__(self) -> memoryview:
        return self.source.tensor(self.digest).data


def _put_blobs(target: Zoo, source: Zoo, digests: Iterable[str], done: Imported, diags: Diagnostics) -> None:
    held = target.blobs()
    for digest in digests:
        try:
            data = source.blob(digest)
            target.put_blob(data)
        except DiagnosticError as error:
            diags.items += error.diagnostics.items
            continue
        if digest not in held:
            done.blobs += 1
            done.nbytes += len(data)


def _refer(target: Zoo, plan: PlanFile, done: Imported) -> None:
    refer(target, plan.data, plan.path, host=plan.host)
    done.plans += 1


def _report_missing(missing: Mapping[str, str], sources: Sequence[Zoo], diags: Diagnostics) -> None:
    where = " and ".join(str(source.root) for source in sources)
    for digest, what in list(missing.items())[:_SHOWN]:
        diags.report("BC904", f"{where} lacks {digest[:12]}: {what}", help="name the zoo that the plan was compiled to")
    if len(missing) > _SHOWN:
        diags.report("BC904", f"{where} lacks {len(missing) - _SHOWN} more tensors and blobs of the plan")
