"""Sites and sides: where a fine-tune acts, and what it puts there.

A site is a place in a structure (`blockc.ir.sites` finds them). A side is all that one fine-tune, or a stack of them,
puts at one site: terms, each by a codec (`blockc.ir.codecs` says what a codec means and what it holds).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from blockc.ir.canonical import text_digest
from blockc.ir.tensor import DTYPE_BYTES, TensorRef, tensor_digest

Scalar = float | int | str
# Codecs that a runtime multiplies as two thin matrices.
LOW_RANK = ("low_rank", "low_rank_int8")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Site:
    """A place in a chain: the occurrence of a block, and the site's name in that block's structure."""

    occurrence: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One part of a side. ``tensors`` and ``scalars`` by role, sorted: `term` makes one."""

    codec: str
    tensors: tuple[tuple[str, TensorRef], ...]
    scalars: tuple[tuple[str, Scalar], ...]

    def __getitem__(self, role: str) -> TensorRef:
        """The tensor of a role that the codec requires. Raises KeyError."""
        return dict(self.tensors)[role]

    def get(self, role: str) -> TensorRef | None:
        """The tensor of a role that the codec leaves open."""
        return dict(self.tensors).get(role)

    def scalar(self, name: str) -> Scalar:
        """A scalar that the codec requires. Raises KeyError."""
        return dict(self.scalars)[name]

    @property
    def rank(self) -> int:
        """Columns of B, rows of A; 0 for what is not of low rank."""
        return self["a"].shape[0] if self.codec in LOW_RANK else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for _, tensor in self.tensors)


def term(codec: str, tensors: Mapping[str, TensorRef], /, **scalars: Scalar) -> Term:
    """A term of ``codec`` with its tensors and scalars by role."""
    return Term(codec=codec, tensors=tuple(sorted(tensors.items())), scalars=tuple(sorted(scalars.items())))


def low_rank(a: TensorRef, b: TensorRef, scale: float) -> Term:
    """``scale * B A`` with A ``[rank, in]`` and B ``[out, rank]`` (LoRA, arXiv 2106.09685)."""
    return term("low_rank", {"a": a, "b": b}, scale=scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """All that one fine-tune (or a stack of them) puts at one site. Terms of one codec stand in stacking order."""

    site: Site
    terms: tuple[Term, ...]

    @property
    def rank(self) -> int:
        """Of all terms together."""
        return sum(term.rank for term in self.terms)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(term.nbytes for term in self.terms)

    def of(self, codec: str) -> tuple[Term, ...]:
        """Its terms of one codec, in order."""
        return tuple(term for term in self.terms if term.codec == codec)


def side_digest(side: Side) -> str:
    """Digest of a side's content and place."""
    return text_digest("side v2", (*map(_term_text, side.terms), str(side.site.occurrence), side.site.name))


def _term_text(term: Term) -> str:
    tensors = [f"{role}={tensor.digest}" for role, tensor in term.tensors]
    scalars = [f"{name}={scalar_text(value)}" for name, value in term.scalars]
    return " ".join((term.codec, *tensors, *scalars))


def scalar_text(value: Scalar) -> str:
    """Exact and canonical: floats in hexadecimal."""
    return value.hex() if isinstance(value, float) else repr(value)


def effective_sides(sides: Iterable[Side]) -> tuple[Side, ...]:
    """The sides without terms that add exactly zero: a scale of 0, or a matrix of zero bytes alone.

    A LoRA fresh from its initialisation has B = 0 everywhere and is its base.
    """
    found = []
    for side in sides:
        terms = tuple(term for term in side.terms if not _adds_zero(term))
        if terms:
            found.append(side if len(terms) == len(side.terms) else replace(side, terms=terms))
    return tuple(found)


def _adds_zero(term: Term) -> bool:
    if term.codec != "low_rank":
        return False
    return term.scalar("scale") == 0 or _is_zero(term["a"]) or _is_zero(term["b"])


def _is_zero(ref: TensorRef) -> bool:
    return ref.digest == _zero_digest(ref.dtype, ref.shape)


@lru_cache(maxsize=256)
def _zero_digest(dtype: str, shape: tuple[int, ...]) -> str:
    return tensor_digest(dtype, shape, bytes(math.prod(shape) * DTYPE_BYTES[dtype]))
