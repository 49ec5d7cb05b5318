"""Which tensors a segment brings with it when its weights are not always in memory.

Placement counts by it, and the runtime loads by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from blockc.ir.layout import linear_groups
from blockc.ir.structure import Structure
from blockc.ir.tensor import TensorRef


def own_tensors(segments: Sequence[Iterable[TensorRef]], others: Iterable[TensorRef]) -> tuple[frozenset[str], ...]:
    """For each segment the digests of those tensors that no other binds. ``others``: what preludes bind.

    What several segments bind stays: it would be wanted by one or the other most of the time, and nobody has to be
    asked before it goes.
    """
    kept = [tuple(refs) for refs in segments]
    bound = [{digest for ref in refs for digest in _digests(ref)} for refs in kept]
    users = Counter(digest for own in bound for digest in own)
    fixed = {digest for ref in others for digest in _digests(ref)} | {own for own, count in users.items() if count > 1}
    return tuple(frozenset(ref.digest for ref in refs if fixed.isdisjoint(_digests(ref))) for refs in kept)


def reading_bytes(structure: Structure, tensors: Mapping[str, TensorRef]) -> int:
    """What reading a block takes beside it: matrices that are joined lie there once more while they are."""
    groups = linear_groups(structure)
    return max((sum(tensors[name].nbytes for name in group) for group in groups), default=0)


def _digests(ref: TensorRef) -> tuple[str, ...]:
    return (ref.digest, *(part.digest for part in ref.parts))
