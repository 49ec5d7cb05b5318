"""Sites and sides: where a fine-tune acts, and what it puts there.

Only *linear* sites carry sides today. Several low-rank terms at one site are a stack of fine-tunes,
``y = W x + b + sum_i scale_i * B_i A_i x``; the runtime concatenates them into one term.
"""

from __future__ import annotations

from dataclasses import dataclass

from blockc.ir.canonical import json_digest
from blockc.ir.tensor import TensorRef


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Site:
    """A place in a chain: the occurrence of a block, and the site's name in that block's structure."""

    occurrence: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """``scale * B A`` with A ``[rank, in]`` and B ``[out, rank]`` (LoRA, arXiv 2106.09685)."""

    a: TensorRef
    b: TensorRef
    scale: float

    @property
    def rank(self) -> int:
        """Columns of B, rows of A."""
        return self.a.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """All that one fine-tune (or a stack of them) puts at one site. ``terms`` are summed, in stacking order."""

    site: Site
    terms: tuple[LowRank, ...]

    @property
    def rank(self) -> int:
        """Of all terms together."""
        return sum(term.rank for term in self.terms)

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices."""
        return sum(term.a.nbytes + term.b.nbytes for term in self.terms)


def side_digest(side: Side) -> str:
    """Digest of a side's content and place."""
    return json_digest(
        "side v1",
        [
            side.site.occurrence,
            side.site.name,
            [[term.a.digest, term.b.digest, term.scale.hex()] for term in side.terms],
        ],
    )
