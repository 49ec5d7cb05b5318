"""Which fine-tunes can be stacked in one bank: those alike in rank, places and codecs.

Placement counts slots by it, and the runtime stacks by it.
"""

from __future__ import annotations

from collections.abc import Mapping

from blockc.ir.layout import padded_rank
from blockc.ir.side import Side, Term

# Padded rank, and the places (occurrence, site) in order, each with the codecs of its terms.
Signature = tuple[int, tuple[tuple[tuple[int, str], str], ...]]


def signature(sides: Mapping[tuple[int, str], Side]) -> Signature:
    """What fine-tunes of one bank have in common. ``sides``: of one fine-tune, at least one, by (occurrence, site)."""
    rank = max(side.rank for side in sides.values())
    return padded_rank(rank), tuple(sorted((place, form_of(side)) for place, side in sides.items()))


def form_of(side: Side) -> str:
    """What sides must have in common to be stacked: each codec once, and how a bottleneck is built."""
    return " ".join(sorted({_form(term) for term in side.terms}))


def _form(term: Term) -> str:
    if term.codec != "bottleneck":
        return "low_rank" if term.rank else term.codec
    roles = ",".join(role for role, _ in term.tensors)
    words = f"{term.scalar('activation')},{term.scalar('reads')}"
    return f"bottleneck({words},{padded_rank(term['down'].shape[0])},{roles})"
