"""Sides folded into the weights that they stand beside.

In: a chain, its tensors in the zoo. Out: the same function with private tensors in place of sides. Invariant: a side is
folded whole or stays; what is computed is the normal form of `blockc.ir.codecs`, in float32, rounded once to the
model's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from blockc.graph import Block, Chain
from blockc.ir import DTYPE_NAME, Op, Param, Place, Side, Structure, TensorRef, Term, sites_of
from blockc.tune.full import tensor_ref
from blockc.zoo import Zoo

# Codecs whose terms can be part of a matrix, a table or a vector.
_FOLDED = {
    "linear": frozenset({"in_scale", "rows", "low_rank", "out_scale", "bias"}),
    "embed": frozenset({"rows", "low_rank"}),
    "vector": frozenset({"value"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """``rounding``: what rounding to the model's dtype took from the change of a matrix or added to it.

    The largest over all matrices, relative to the change's own Frobenius norm.
    """

    chain: Chain
    rounding: float


def fold(chain: Chain, zoo: Zoo) -> Folded:
    """Fold every side that can be; tensors that this makes are in the zoo afterwards. Raises `DiagnosticError`."""
    by_occurrence: dict[int, list[Side]] = {}
    for side in chain.sides:
        by_occurrence.setdefault(side.site.occurrence, []).append(side)
    blocks, left, rounding = list(chain.path.blocks), [], 0.0
    for occurrence, sides in sorted(by_occurrence.items()):
        blocks[occurrence], kept, lost = _fold_block(blocks[occurrence], sides, zoo)
        left += kept
        rounding = max(rounding, lost)
    path = replace(chain.path, blocks=tuple(blocks))
    folded = replace(chain, path=path, sides=tuple(sorted(left, key=lambda side: side.site)))
    return Folded(chain=folded, rounding=rounding)


def _fold_block(block: Block, sides: Sequence[Side], zoo: Zoo) -> tuple[Block, list[Side], float]:
    places = sites_of(block.structure)
    tensors, kept, rounding = dict(block.tensors), [], 0.0
    fresh: list[tuple[TensorRef, memoryview]] = []
    for side in sides:
        place = places[side.site.name]
        if not _can_fold(block.structure, place, side):
            kept.append(side)
            continue
        bias = _bias_of(block.structure, place)
        made, lost = _merged(place, side, tensors, bias, zoo)
        rounding = max(rounding, lost)
        for name, value in made.items():
            ref, data = tensor_ref(value.to(getattr(torch, DTYPE_NAME[tensors[name].dtype])))
            tensors[name] = ref
            fresh.append((ref, data))
        if place.kind == "linear" and bias is None and (terms := side.of("bias")):
            kept.append(replace(side, terms=terms))
    zoo.put_tensors(fresh)
    return replace(block, tensors=tensors), kept, rounding


def _can_fold(structure: Structure, place: Place, side: Side) -> bool:
    """Whether every term is understood, no new row is among them, and nobody else reads the parameter."""
    if place.param is None or not {term.codec for term in side.terms} <= _FOLDED.get(place.kind, frozenset()):
        return False
    users = [op for op in structure.ops if Param(place.param) in op.args]
    if place.kind != "vector" and len(users) != 1:
        return False
    return not (place.kind == "embed" and side.of("rows"))  # rows beyond the table belong to new tokens


def _bias_of(structure: Structure, place: Place) -> str | None:
    op: Op = next(op for op in structure.ops if op.result in place.ops)
    bias = op.args[2] if place.kind == "linear" else None
    return bias.name if isinstance(bias, Param) else None


def _merged(
    place: Place, side: Side, tensors: Mapping[str, TensorRef], bias: str | None, zoo: Zoo
) -> tuple[dict[str, torch.Tensor], float]:
    """Parameters by name in float32, and how much of the matrix's change its dtype loses."""
    assert place.param is not None
    if place.kind == "vector":
        return {place.param: read(zoo, side.terms[0]["value"])}, 0.0
    ref = tensors[place.param]
    base = read(zoo, ref).float()
    matrix = base.t().clone() if place.kind == "embed" else base.clone()
    for term in side.of("rows"):
        matrix[read(zoo, term["index"])] = read(zoo, term["weight"]).float()
    for term in side.of("in_scale"):
        matrix *= read(zoo, term["value"]).float()
    scale = [read(zoo, term["value"]).float() for term in side.of("out_scale")]
    for vector in scale:
        matrix *= vector[:, None]
    for term in side.of("low_rank"):
        matrix += _product(term, zoo)
    made = {place.param: matrix.t() if place.kind == "embed" else matrix}
    if bias is not None:
        whole = [read(zoo, term["value"]).float() for term in side.of("bias")]
        if whole or scale:
            made[bias] = whole[0] if whole else scale[0] * read(zoo, tensors[bias]).float()
    change = made[place.param] - base
    rounded = made[place.param].to(getattr(torch, DTYPE_NAME[ref.dtype])).float() - base
    norm = float(change.norm())
    return made, float((rounded - change).norm()) / norm if norm else 0.0


def _product(term: Term, zoo: Zoo) -> torch.Tensor:
    return read(zoo, term["b"]).float() @ read(zoo, term["a"]).float() * float(term.scalar("scale"))


def read(zoo: Zoo, ref: TensorRef) -> torch.Tensor:
    """A tensor of the zoo, copied. Raises `DiagnosticError`."""
    data = np.frombuffer(zoo.tensor(ref.digest).data, dtype=np.uint8).copy()
    tensor = torch.from_numpy(data).view(getattr(torch, DTYPE_NAME[ref.dtype]))
    assert tensor.numel() == math.prod(ref.shape)
    return tensor.reshape(ref.shape)


def private_bytes(after: Chain, others: Iterable[Chain]) -> int:
    """Bytes of weights that only the merged chain has."""
    held = {ref for chain in others for block in chain.path.blocks for ref in block.tensors.values()}
    own = {ref for block in after.path.blocks for ref in block.tensors.values()}
    return sum(ref.nbytes for ref in own - held)
