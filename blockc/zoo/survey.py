"""Survey: what a zoo holds, and which plans it holds it for.

In: a zoo. Out: plans with the tensors and blobs that they name, and for each of these the plans. Reads headers,
references and the blobs that are plans or named by them; no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blockc.diag import Diagnostics
from blockc.zoo.collect import named
from blockc.zoo.header import TensorSpan
from blockc.zoo.lease import leased
from blockc.zoo.reference import Reference, State, references, state_of
from blockc.zoo.store import Zoo


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanShare:
    """A plan that the zoo keeps things for. Bytes are of values and blobs; ``own_bytes``: that no other plan needs."""

    reference: Reference
    state: State
    tensors: int
    blobs: int
    nbytes: int
    own_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """``plans_of``: for tensors and blobs, the plans (their digests, sorted) that name them."""

    plans: tuple[PlanShare, ...]
    packs: Mapping[str, tuple[TensorSpan, ...]]
    tensors: Mapping[str, TensorSpan]
    blobs: Mapping[str, int]
    plans_of: Mapping[str, tuple[str, ...]]
    leased: frozenset[str]
    files_bytes: int

    def nbytes(self, digest: str) -> int:
        """Bytes of a tensor's values, or of a blob."""
        span = self.tensors.get(digest)
        return self.blobs[digest] if span is None else span.end - span.start

    @property
    def unneeded(self) -> tuple[str, ...]:
        """Tensors and blobs that no plan names and no compilation in progress holds, sorted."""
        known = {*self.tensors, *self.blobs}
        return tuple(sorted(known - self.plans_of.keys() - self.leased))


def survey(zoo: Zoo, *, diags: Diagnostics) -> Survey:
    """Damage that was met is reported; what a damaged plan or manifest names counts as needed by nobody."""
    packs, blobs = zoo.packs(), zoo.blobs()
    diags.items += zoo.damaged_packs().items
    tensors = {span.name: span for spans in packs.values() for span in spans}
    found = references(zoo)
    names = {
        plan: named(zoo, (plan,), tensors=tensors, blobs=blobs, diags=diags) for plan in {item.plan for item in found}
    }
    plans_of: dict[str, tuple[str, ...]] = {}
    for plan in sorted(names):
        for digest in names[plan]:
            plans_of[digest] = (*plans_of.get(digest, ()), plan)

    def total(digests: set[str]) -> int:
        return sum(
            blobs[digest] if digest in blobs else tensors[digest].end - tensors[digest].start for digest in digests
        )

    return Survey(
        plans=tuple(
            PlanShare(
                reference=item,
                state=state_of(zoo, item),
                tensors=len(names[item.plan] & tensors.keys()),
                blobs=len(names[item.plan] & blobs.keys()),
                nbytes=total(names[item.plan]),
                own_bytes=total({digest for digest in names[item.plan] if len(plans_of[digest]) == 1}),
            )
            for item in found
        ),
        packs=packs,
        tensors=tensors,
        blobs=blobs,
        plans_of=plans_of,
        leased=frozenset(leased(zoo.leases)),
        files_bytes=zoo.files_bytes(),
    )
