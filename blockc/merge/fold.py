"""Sides folded into the weights that they stand beside.

In: a chain, its tensors in the zoo. Out: the same function with private tensors in place of sides. Invariant: a side is
folded whole or stays; what is computed is the normal form of `blockc.ir.codecs`, in float32, rounded once to the
model's dtype. `imagined` is the same without values: what a folded chain has to read and to keep, before anything is
computed, and where no weights are at hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from blockc.graph import Block, Chain
from blockc.ir import DTYPE_NAME, Param, Place, Side, Structure, TensorRef
from blockc.tune.folding import FOLDED, folded_params, folded_tensors
from blockc.tune.full import tensor_ref
from blockc.tune.stored import read_tensor
from blockc.zoo import Zoo

# Of a change, by its Frobenius norm: what rounding may take before a merged model is no longer the same to its users.
MOST_ROUNDING: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """``rounding``: what rounding to the model's dtype took from the change of a matrix or added to it.

    The largest over all matrices, relative to the change's own Frobenius norm. None: it was only imagined.
    """

    chain: Chain
    rounding: float | None

    @property
    def is_same(self) -> bool:
        """Whether the merged model is the same to its users, as far as is known."""
        return self.rounding is None or self.rounding <= MOST_ROUNDING


def fold(chain: Chain, zoo: Zoo) -> Folded:
    """Fold every side that can be; tensors that this makes are in the zoo afterwards. Raises `DiagnosticError`."""
    blocks, left, rounding = list(chain.path.blocks), [], 0.0
    for occurrence, sides in chain.sides_at.items():
        blocks[occurrence], kept, lost = _fold_block(blocks[occurrence], sides, zoo)
        left += kept
        rounding = max(rounding, lost)
    return Folded(chain=_on(chain, blocks, left), rounding=rounding)


def imagined(chain: Chain) -> Chain:
    """As `fold`, with names of its own in place of the tensors that it would make."""
    blocks, left = list(chain.path.blocks), []
    for occurrence, sides in chain.sides_at.items():
        block = blocks[occurrence]
        tensors = dict(block.tensors)
        for side in sides:
            place = block.places[side.site.name]
            if not _can_fold(block.structure, place, side):
                left.append(side)
                continue
            for name in folded_params(place, side):
                tensors[name] = _named(tensors[name], f"{chain.digest} {occurrence} {name}")
            left += _left(place, side)
        blocks[occurrence] = replace(block, tensors=tensors)
    return _on(chain, blocks, left)


def _named(old: TensorRef, name: str) -> TensorRef:
    digest = hashlib.sha256(f"merged tensor v1 {old.digest} {name}".encode()).hexdigest()
    return TensorRef(digest=digest, dtype=old.dtype, shape=old.shape)


def _on(chain: Chain, blocks: Sequence[Block], left: Iterable[Side]) -> Chain:
    path = replace(chain.path, blocks=tuple(blocks))
    return replace(chain, path=path, sides=tuple(sorted(left, key=lambda side: side.site)))


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
        kept += _left(place, side)
    zoo.put_tensors(fresh)
    return replace(block, tensors=tensors), kept, rounding


def _left(place: Place, side: Side) -> list[Side]:
    """What of a side that is folded stays: a bias that the structure has no place for."""
    if place.kind == "linear" and place.bias is None and (terms := side.of("bias")):
        return [replace(side, terms=terms)]
    return []


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
