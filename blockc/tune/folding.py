"""A side folded into the tensors that it stands beside, in float32: `blockc.ir.codecs` made dense."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from blockc.delta import ADDITIVE, decode
from blockc.ir import Place, Side, TensorRef
from blockc.tune.stored import read_tensor
from blockc.zoo import Zoo

# Codecs whose terms can be part of a matrix, a table or a vector.
FOLDED = {
    "linear": frozenset({"in_scale", "rows", "out_scale", "bias"}) | ADDITIVE,
    "embed": frozenset({"rows", "low_rank"}),
    "vector": frozenset({"value"}),
}


def folded_matrix(place: Place, side: Side | None, weight: TensorRef, zoo: Zoo) -> torch.Tensor:
    """The matrix ``[out, in]`` or table ``[vocab, hidden]`` of a site with its side, float32."""
    base = read_tensor(zoo, weight).float()
    if side is None:
        return base
    matrix = base.t() if place.kind == "embed" else base
    for term in side.of("rows"):
        index, rows = read_tensor(zoo, term["index"]), read_tensor(zoo, term["weight"]).float()
        if place.kind == "embed":
            matrix[:, index] = rows.t()
        else:
            matrix[index] = rows
    for term in side.of("in_scale"):
        matrix = matrix * read_tensor(zoo, term["value"]).float()
    for term in side.of("out_scale"):
        matrix = matrix * read_tensor(zoo, term["value"]).float()[:, None]
    for term in side.terms:
        if term.codec in ADDITIVE:
            matrix = matrix + decode(term, partial(read_tensor, zoo))
    return matrix.t() if place.kind == "embed" else matrix


def folded_bias(side: Side | None, bias: TensorRef | None, zoo: Zoo) -> torch.Tensor | None:
    """The bias of a linear with its side, float32; None if it has none. ``bias``: the base's."""
    whole = () if side is None else side.of("bias")
    if whole:
        return read_tensor(zoo, whole[0]["value"]).float()
    if bias is None:
        return None
    value = read_tensor(zoo, bias).float()
    for term in () if side is None else side.of("out_scale"):
        value = value * read_tensor(zoo, term["value"]).float()
    return value


def folded_params(place: Place, side: Side) -> tuple[str, ...]:
    """Names of the parameters that a side changes. A bias that the structure has not is left out."""
    assert place.param is not None
    biased = place.kind != "vector" and place.bias is not None and (side.of("bias") or side.of("out_scale"))
    return (place.param, place.bias) if biased and place.bias is not None else (place.param,)


def folded_tensors(place: Place, side: Side, tensors: Mapping[str, TensorRef], zoo: Zoo) -> dict[str, torch.Tensor]:
    """The parameters that a side changes (`folded_params`), by name, float32."""
    assert place.param is not None
    if place.kind == "vector":
        return {place.param: read_tensor(zoo, side.terms[0]["value"]).float()}
    made = {place.param: folded_matrix(place, side, tensors[place.param], zoo)}
    if place.bias is not None and place.bias in folded_params(place, side):
        bias = folded_bias(side, tensors[place.bias], zoo)
        assert bias is not None
        made[place.bias] = bias
    return made
