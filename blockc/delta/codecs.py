"""Lossy forms of a change ``D [out, in]`` of a matrix, and back.

In: a float32 change. Out: tensors by role, as `blockc.ir.codecs` lists them. Invariant: `decode` of what is stored is
what the runtime adds; errors are measured on it and never derived.

``sign``: one bit a value and one scale a row (BitDelta, arXiv 2402.10193, has one a matrix). ``group_int``: integers of
4 or 8 bits with a scale for each group of a row; ``group_int24`` keeps two of each four values and where they stand.
``low_rank``: the leading singular directions in the model's dtype; ``low_rank_int8``: further ones in a byte a value
(mixed precision by singular value, as Delta-CoMe, arXiv 2406.08903, does it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from blockc.delta.integers import packed, unpacked
from blockc.ir import Scalar, TensorRef, Term

Read = Callable[[TensorRef], Tensor]
ADDITIVE = frozenset({"low_rank", "low_rank_int8", "sign", "sparse", "group_int", "group_int24"})
_GROUPS = (64, 32, 16, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One term, with its tensors in place of references."""

    codec: str
    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, Scalar]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def decoded(self) -> Tensor:
        """The change that it stands for, float32 ``[out, in]``."""
        return _decode(self.codec, self.tensors, self.scalars)


def decode(term: Term, read: Read) -> Tensor:
    """The change ``[out, in]`` that an additive term stands for, float32. Raises KeyError for another codec."""
    return _decode(term.codec, {role: read(ref) for role, ref in term.tensors}, dict(term.scalars))


def _decode(codec: str, tensors: Mapping[str, Tensor], scalars: Mapping[str, Scalar]) -> Tensor:
    match codec:
        case "low_rank":
            return tensors["b"].float() @ tensors["a"].float() * float(scalars["scale"])
        case "low_rank_int8":
            a = (tensors["a"].float() - 128) * tensors["a_scale"].float()[:, None]
            return ((tensors["b"].float() - 128) * tensors["b_scale"].float()) @ a
        case "sign":
            bits = unpacked(tensors["bits"], 1)[:, : int(scalars["columns"])]
            return (2 * bits.float() - 1) * tensors["scale"].float()[:, None]
        case "group_int":
            return _scaled(_codes(tensors, scalars), tensors["scale"], int(scalars["group"]))
        case "group_int24":
            codes = _codes(tensors, scalars)
            rows, kept = codes.shape
            places = unpacked(tensors["index"], 2).view(rows, kept // 2, 2).long()
            quads = torch.zeros(rows, kept // 2, 4).scatter_(2, places, codes.view(rows, kept // 2, 2))
            return _scaled(quads.view(rows, 2 * kept), tensors["scale"], int(scalars["group"]))
        case "sparse":
            dense = torch.zeros(int(scalars["rows"]) * int(scalars["columns"]))
            dense[tensors["index"].long()] = tensors["value"].float()
            return dense.view(int(scalars["rows"]), int(scalars["columns"]))
    raise KeyError(codec)


def encode_sign(change: Tensor) -> Encoded:
    """One bit a value; the scale of a row is the mean of its absolute values, which loses least."""
    bits = packed((change >= 0).to(torch.uint8), 1)
    scale = change.abs().mean(1)
    return Encoded(codec="sign", tensors={"bits": bits, "scale": scale}, scalars={"columns": change.shape[1]})


def encode_group_int(change: Tensor, *, bits: int, sparse: bool = False) -> Encoded | None:
    """Symmetric integers, ``bits`` 4 or 8. None where the columns cannot be grouped."""
    columns = change.shape[1]
    group = next((size for size in _GROUPS if columns % size == 0), None)
    if group is None:
        return None
    kept, index = (change, None)
    if sparse:
        quads = change.view(len(change), columns // 4, 4)
        places = quads.abs().topk(2, 2).indices.sort(2).values
        index = packed(places.reshape(len(change), columns // 2).to(torch.uint8), 2)
        mask = torch.zeros_like(quads).scatter_(2, places, 1.0)
        change = (quads * mask).view_as(change)
        kept = quads.gather(2, places).view(len(change), columns // 2)
    largest = 2 ** (bits - 1) - 1
    scale = change.view(len(change), columns // group, group).abs().amax(2).div(largest).to(torch.float16)
    scale = scale.clamp(min=torch.finfo(torch.float16).tiny)
    spread = scale.float().repeat_interleave(kept.shape[1] // scale.shape[1], 1)
    codes = (kept / spread).round_().clamp_(-largest, largest).add_(2 ** (bits - 1)).to(torch.uint8)
    tensors = {"codes": packed(codes, bits), "scale": scale}
    if index is not None:
        tensors["index"] = index
    return Encoded(
        codec="group_int24" if sparse else "group_int", tensors=tensors, scalars={"bits": bits, "group": group}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Directions:
    """A singular value decomposition ``u diag(s) v`` of a change, the largest first."""

    u: Tensor
    s: Tensor
    v: Tensor

    def encode(self, first: int, last: int, dtype: torch.dtype) -> Encoded:
        """Directions ``first .. last`` in the model's dtype."""
        root = self.s[first:last].sqrt()
        a, b = root[:, None] * self.v[first:last], self.u[:, first:last] * root
        return Encoded(
            codec="low_rank", tensors={"a": a.to(dtype).contiguous(), "b": b.to(dtype).contiguous()},
            scalars={"scale": 1.0},
        )  # fmt: skip

    def encode_int8(self, first: int, last: int) -> Encoded:
        """Directions ``first .. last``, a byte a value and one scale for each direction."""
        root = self.s[first:last].sqrt()
        a, a_scale = _bytes(root[:, None] * self.v[first:last], 1)
        b, b_scale = _bytes(self.u[:, first:last] * root, 0)
        return Encoded(
            codec="low_rank_int8", tensors={"a": a, "a_scale": a_scale, "b": b, "b_scale": b_scale}, scalars={}
        )


def directions(change: Tensor, most: int) -> Directions:
    """The leading ``most`` directions; by a randomised method (arXiv 0909.4061) where the matrix is large."""
    if min(change.shape) <= 4 * most:
        u, s, v = torch.linalg.svd(change, full_matrices=False)
        return Directions(u=u[:, :most], s=s[:most], v=v[:most])
    state = torch.random.get_rng_state()
    torch.manual_seed(0)  # a compiler yields the same for the same input
    u, s, right = torch.svd_lowrank(change, q=min(most + 8, min(change.shape)), niter=4)
    torch.random.set_rng_state(state)
    return Directions(u=u[:, :most], s=s[:most], v=right.t()[:most])


def _bytes(value: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    scale = value.abs().amax(axis).div(127).clamp(min=torch.finfo(torch.float32).tiny)
    codes = (value / scale.unsqueeze(axis)).round_().clamp_(-127, 127).add_(128).to(torch.uint8)
    return codes.contiguous(), scale


def _codes(tensors: Mapping[str, Tensor], scalars: Mapping[str, Scalar]) -> Tensor:
    bits = int(scalars["bits"])
    codes: Tensor = unpacked(tensors["codes"], bits).float()
    return codes - float(1 << (bits - 1))


def _scaled(values: Tensor, scale: Tensor, group: int) -> Tensor:
    return values * scale.float().repeat_interleave(group, 1)
