"""Sites and sides: where a fine-tune acts, and what it puts there.

Only *linear* sites carry sides today. Several low-rank terms at one site are a stack of fine-tunes,
``y = W x + b + sum_i scale_i * B_i A_i x``; the runtime concatenates them into one term.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from blockc.ir.canonical import text_digest
from blockc.ir.tensor import DTYPE_BYTES, TensorRef, tensor_digest


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
    terms = [f"{term.a.digest} {term.b.digest} {term.scale.hex()}" for term in side.terms]
    return text_digest("side v1", (*terms, str(side.site.occurrence), side.site.name))


def effective_sides(sides: Iterable[Side]) -> tuple[Side, ...]:
    """The sides without terms that add exactly zero: a scale of 0, or a matrix of zero bytes alone.

    A LoRA fresh from its initialisation has B = 0 everywhere and is its base.
    """
    found = []
    for side in sides:
        terms = tuple(term for term in side.terms if term.scale != 0 and not _is_zero(term.a) and not _is_zero(term.b))
        if terms:
            found.append(side if len(terms) == len(side.terms) else replace(side, terms=terms))
    return tuple(found)


def _is_zero(ref: TensorRef) -> bool:
    return ref.digest == _zero_digest(ref.dtype, ref.shape)


@lru_cache(maxsize=256)
def _zero_digest(dtype: str, shape: tuple[int, ...]) -> str:
    return tensor_digest(dtype, shape, bytes(math.prod(shape) * DTYPE_BYTES[dtype]))
