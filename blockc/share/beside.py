"""One block of a full fine-tune as sides on the block that it derives from.

In: two blocks of one structure. Out: sides with the evidence for each tensor, or None where any tensor cannot be kept
beside the other within the budget, or where that takes more than the block itself. Vectors, biases and few changed
rows are kept exactly; matrices that changed as a whole by a codec of `blockc.delta`, if a budget is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from blockc.delta import choose
from blockc.graph import Block
from blockc.ir import DTYPE_NAME, Place, Side, Site, TensorRef, Term, place_of, term
from blockc.share.evidence import TensorEvidence
from blockc.tune.draft import few_rows
from blockc.tune.full import tensor_ref
from blockc.tune.stored import read_tensor
from blockc.zoo import Zoo


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """``fresh``: tensors that are to be stored if this is used."""

    sides: tuple[Side, ...]
    evidence: tuple[TensorEvidence, ...]
    fresh: tuple[tuple[TensorRef, memoryview], ...]


def same_form(block: Block, base: Block) -> bool:
    """Whether two blocks differ in their tensors alone."""
    return (block.structure_digest, block.prelude, block.contexts, dict(block.binds)) == (
        base.structure_digest, base.prelude, base.contexts, dict(base.binds),
    ) and all(base.tensors[name].dtype == ref.dtype for name, ref in block.tensors.items())  # fmt: skip


def beside(block: Block, base: Block, occurrence: int, *, zoo: Zoo, max_error: float | None) -> Beside | None:
    """``max_error`` None: exact or not at all. Raises `DiagnosticError` where the zoo lacks a tensor."""
    if not same_form(block, base):
        return None
    work = _Work(block=block, base=base, occurrence=occurrence, zoo=zoo, max_error=max_error)
    for name, ref in block.tensors.items():
        if ref != base.tensors[name] and not work.keep(name):
            return None
    if sum(item.nbytes for item in work.evidence) > own_bytes(block, base.tensors):
        return None
    return Beside(
        sides=tuple(
            Side(site=Site(occurrence=occurrence, name=name), terms=tuple(terms))
            for name, terms in sorted(work.terms.items())
        ),
        evidence=tuple(work.evidence),
        fresh=tuple(work.fresh),
    )


@dataclass(slots=True, kw_only=True)
class _Work:
    """State of one comparison."""

    block: Block
    base: Block
    occurrence: int
    zoo: Zoo
    max_error: float | None
    terms: dict[str, list[Term]] = field(default_factory=dict)
    evidence: list[TensorEvidence] = field(default_factory=list)
    fresh: list[tuple[TensorRef, memoryview]] = field(default_factory=list)

    def keep(self, name: str) -> bool:
        """Whether the tensor can be kept beside the base's."""
        place = place_of(self.block.structure, name)
        if place is None:
            return False
        if place.kind == "vector" or name == place.bias:
            codec = "value" if place.kind == "vector" else "bias"
            return self._add(name, place.name, [term(codec, {"value": self.block.tensors[name]})])
        return self._matrix(name, place)

    def _matrix(self, name: str, place: Place) -> bool:
        tuned, base = (read_tensor(self.zoo, item.tensors[name]) for item in (self.block, self.base))
        differs = few_rows(base, tuned)
        if differs is not None:
            rows = {"index": self._store(differs), "weight": self._store(tuned[differs])}
            return self._add(name, place.name, [term("rows", rows)])
        if self.max_error is None or place.kind != "linear":
            return False
        dtype: torch.dtype = getattr(torch, DTYPE_NAME[self.block.tensors[name].dtype])
        found = choose(base, tuned, max_error=self.max_error, dtype=dtype)
        if found is None:
            return False
        terms = [
            term(part.codec, {role: self._store(value) for role, value in part.tensors.items()}, **part.scalars)
            for part in found.terms
        ]
        return self._add(name, place.name, terms, lost=found.lost, error=found.error)

    def _add(self, name: str, site: str, terms: list[Term], *, lost: float = 0.0, error: float = 0.0) -> bool:
        self.terms.setdefault(site, []).extend(terms)
        self.evidence.append(
            TensorEvidence(
                occurrence=self.occurrence,
                parameter=name,
                codec=" + ".join(item.codec for item in terms),
                lost=lost,
                error=error,
                nbytes=sum(item.nbytes for item in terms),
                own_bytes=self.block.tensors[name].nbytes,
            )
        )
        return True

    def _store(self, value: Tensor) -> TensorRef:
        ref, data = tensor_ref(value)
        self.fresh.append((ref, data))
        return ref


def likeness(block: Block, base: Block, zoo: Zoo) -> float:
    """Cosine of all parameters of two blocks of one form. It ranks candidates, and decides nothing."""
    dot = one = other = 0.0
    for name, ref in block.tensors.items():
        left = read_tensor(zoo, ref).double()
        right = left if base.tensors[name] == ref else read_tensor(zoo, base.tensors[name]).double()
        dot, one, other = (
            dot + float((left * right).sum()),
            one + float(left.square().sum()),
            other + float(right.square().sum()),
        )
    return dot / (one * other) ** 0.5 if one and other else 0.0


def own_bytes(block: Block, base: Mapping[str, TensorRef]) -> int:
    """Bytes of the tensors that a block has for itself."""
    return sum(ref.nbytes for name, ref in block.tensors.items() if base.get(name) != ref)
