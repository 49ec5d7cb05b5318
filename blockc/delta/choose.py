"""The cheapest codec of a change within an error budget.

In: a matrix of the base, the fine-tune's, and the budget. Out: terms with their measured error, or None where no codec
that is smaller than the matrix itself keeps to it. The budget is on what is lost of the *change*,
``||W' - (W + D)||_F / ||W' - W||_F``. Relative to the weights themselves, as little as 1 % could be the whole of what
was trained: a fine-tune would silently become its base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blockc.delta.codecs import Directions, Encoded, directions, encode_group_int, encode_sign

# Of the smaller side of a matrix: beyond it, integers are smaller than singular directions.
_MOST_RANK = 1 / 8
_RANKS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """``lost``: relative to the change; ``error``: relative to the fine-tune's matrix. Frobenius norms, measured."""

    terms: tuple[Encoded, ...]
    error: float
    lost: float

    @property
    def nbytes(self) -> int:
        """Bytes of all terms."""
        return sum(term.nbytes for term in self.terms)


def choose(base: Tensor, tuned: Tensor, *, max_error: float, dtype: torch.dtype) -> Choice | None:
    """``base`` and ``tuned`` ``[out, in]`` in any floating dtype; ``dtype``: the model's, of matrices of low rank."""
    wide = tuned.float()
    change = wide - base.float()
    norm, size = float(wide.norm()), float(change.norm())
    if not norm or not size:
        return None
    best: Choice | None = None
    for terms in _candidates(change, max_error * size, dtype):
        rest = change.clone()
        for term in terms:
            rest -= term.decoded()
        left = float(rest.norm())
        found = Choice(terms=tuple(terms), error=left / norm, lost=left / size)
        if found.lost <= max_error and (best is None or found.nbytes < best.nbytes):
            best = found
    own = tuned.numel() * torch.finfo(dtype).bits // 8
    return best if best is not None and best.nbytes < own else None


def _candidates(change: Tensor, allowed: float, dtype: torch.dtype) -> Iterator[Sequence[Encoded]]:
    """Forms to try, those first that cannot be told from their parameters alone. ``allowed``: the norm of what is lost.

    A sign, or a few integers, beside the leading directions is what the two together do best.
    """
    yield [encode_sign(change)]
    for bits, sparse in ((4, True), (4, False), (8, True), (8, False)):
        encoded = encode_group_int(change, bits=bits, sparse=sparse)
        if encoded is not None:
            yield [encoded]
    most = min(_RANKS[-1], int(min(change.shape) * _MOST_RANK))
    if most < 1:
        return
    found = directions(change, most)
    total = float(change.norm()) ** 2
    energy = found.s.double().square().cumsum(0)
    ranks = [rank for rank in _RANKS if rank <= most]
    enough = [rank for rank in ranks if max(0.0, total - float(energy[rank - 1])) ** 0.5 <= allowed]
    for rank in enough[:2]:  # the next one where rounding of the factors takes the first over the budget
        yield [found.encode(0, rank, dtype)]
        yield from _mixed(found, rank, dtype)


def _mixed(found: Directions, rank: int, dtype: torch.dtype) -> Iterator[Sequence[Encoded]]:
    """The leading directions in the model's dtype, the others a byte a value."""
    for wide in (0, max(1, rank // 8), max(1, rank // 4)):
        if wide < rank:
            yield [*([found.encode(0, wide, dtype)] if wide else []), found.encode_int8(wide, rank)]
