"""Sides folded into the weights that they stand beside.

In: a chain, its tensors in the zoo. Out: the same function with private tensors in place of sides. Invariant: a side is
folded whole or stays; what is computed is the normal form of `blockc.ir.codecs`, in float32, rounded once to the
model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from blockc.graph import Block, Chain
from blockc.ir import DTYPE_NAME, Param, Place, Side, Structure, TensorRef
from blockc.tune.folding import FOLDED, folded_tensors
from blockc.tune.full import tensor_ref
from blockc.tune.stored import read_tensor
from blockc.zoo import Zoo


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """``rounding``: what rounding to the model's dtype took from the change of a matrix or added to it.

    The largest over all matrices, relative to the change's own Frobenius norm.
    """

    chain: Chain
    rounding: float


def fold(chain: Chain, zoo: Zoo) -> Folded:
    """Fold every side that can be; tensors that this makes are in the zoo afterwards. Raises `DiagnosticError`."""
    blocks, left, rounding = list(chain.path.blocks), [], 0.0
    for occurrence, sides in chain.sides_at.items():
        blocks[occurrence], kept, lost = _fold_block(blocks[occurrence], sides, zoo)
        left += kept
        rounding = max(rounding, lost)
    path = replace(chain.path, blocks=tuple(blocks))
    folded = replace(chain, path=path, sides=tuple(sorted(left, key=lambda side: side.site)))
    return Folded(chain=folded, rounding=rounding)


def _fold_block(block: Block, sides: Sequence[Side], zoo: Zoo) -> tuple[Block, list[Side], float]:
    tensors, kept, rounding = dict(block.tensors), [], 0.0
    fresh: list[tuple[TensorRef, memoryview]] = []
    for side in sides:
        place = block.places[side.site.name]
        if not _can_fold(block.structure, place, side):
            kept.append(side)
            continue
        for name, value in folded_tensors(place, side, tensors, zoo).items():
            rounded = value.to(getattr(torch, DTYPE_NAME[tensors[name].dtype]))
            if name == place.param:
                rounding = max(rounding, _lost(read_tensor(zoo, tensors[name]).float(), value, rounded.float()))
            ref, data = tensor_ref(rounded)
            tensors[name] = ref
            fresh.append((ref, data))
        if place.kind == "linear" and place.bias is None and (terms := side.of("bias")):
            kept.append(replace(side, terms=terms))
    zoo.put_tensors(fresh)
    return replace(block, tensors=tensors), kept, rounding


def _can_fold(structure: Structure, place: Place, side: Side) -> bool:
    """Whether every term is understood, no new row is among them, and nobody else reads the parameter."""
    if place.param is None or not {term.codec for term in side.terms} <= FOLDED.get(place.kind, frozenset()):
        return False
    users = [op for op in structure.ops if Param(place.param) in op.args]
    if place.kind != "vector" and len(users) != 1:
        return False
    return not (place.kind == "embed" and side.of("rows"))  # rows beyond the table belong to new tokens


def _lost(base: torch.Tensor, exact: torch.Tensor, rounded: torch.Tensor) -> float:
    change = float((exact - base).norm())
    return float((rounded - exact).norm()) / change if change else 0.0


def private_bytes(after: Chain, others: Iterable[Chain]) -> int:
    """Bytes of weights that only the merged chain has."""
    held = {ref for chain in others for block in chain.path.blocks for ref in block.tensors.values()}
    own = {ref for block in after.path.blocks for ref in block.tensors.values()}
    return sum(ref.nbytes for ref in own - held)
