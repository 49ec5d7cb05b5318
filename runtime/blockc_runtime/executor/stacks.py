"""Sides of one bank at one site, or at linears that read one value, as the tensors that ops take.

In: for each output the side of each member, and the zoo's tensors. Out: what the op of that kind of site is given.
Invariant: slot i holds what member i has, in the model's dtype; folding is done in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from blockc.diag import refuse
from blockc.ir import Side, SiteKind, TensorRef, Term
from blockc.ir.layout import padded_rank
from blockc_runtime.executor.weights import WeightStore
from blockc_runtime.ops.cache.cpu import CachedKv
from blockc_runtime.ops.embedding.cpu import EmbeddingSides, TableRows
from blockc_runtime.ops.integers import IntegerMatrix
from blockc_runtime.ops.linear.changes import GroupIntChange, SignChange, SparseChange
from blockc_runtime.ops.linear.sides import (
    Additive,
    LowRankOutput,
    LowRankWeights,
    OutputSides,
    Rows,
    SideWeights,
)
from blockc_runtime.ops.residual.cpu import Bottlenecks


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """``sides[output][member]``: None for all members where they have none.

    ``rank``: what terms of low rank are padded to; ``biases``: the base's, of each linear; ``height``: rows of a table.
    ``alone``: made for one slot among others, so that nothing may depend on what these members have in common.
    """

    kind: SiteKind
    sides: Sequence[Sequence[Side | None]]
    rank: int
    biases: Sequence[TensorRef | None]
    height: int = 0
    alone: bool = False

    @property
    def members(self) -> list[Side]:
        """The sides of a site that is by itself."""
        return [side for side in self.sides[0] if side is not None]


def stack(places: Places, store: WeightStore, dtype: torch.dtype) -> Any:
    """The weights of one bank. Raises ValueError for a codec that this runtime lacks."""
    return _STACKS[places.kind](places, store, dtype)


def check_values(side: Side, store: WeightStore, dtype: torch.dtype) -> None:
    """Raises `DiagnosticError` (BC203) for values that are not finite, before anybody is served with them."""
    check_apart(side, store, dtype)
    if side.rank:
        read_low_rank(side, store, dtype)


def check_apart(side: Side, store: WeightStore, dtype: torch.dtype) -> None:
    """The same of all but terms of low rank, which are checked whenever they are stacked."""
    for term in side.terms:
        for _, ref in () if term.rank else term.tensors:
            tensor = store.read(ref)
            if tensor.is_floating_point() and not torch.isfinite(tensor.to(dtype)).all():
                _refuse()
            del tensor
            store.release(ref)


def read_low_rank(side: Side, store: WeightStore, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A ``[r, in]`` and B ``[out, r]``: terms side by side, scale folded in in float32, then cast to ``dtype``."""
    pairs = [_pair(term, store) for term in side.terms if term.rank]
    a, b = torch.cat([a for a, _ in pairs], 0), torch.cat([b for _, b in pairs], 1)
    del pairs  # as long as anything looks at the zoo's file it stays in memory
    for term in side.terms:
        if term.rank:
            store.release(term["a"])
            store.release(term["b"])
    a, b = a.to(dtype), b.to(dtype)
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        _refuse()
    return a, b


def _pair(term: Term, store: WeightStore) -> tuple[Tensor, Tensor]:
    a, b = store.read(term["a"]).float(), store.read(term["b"]).float()
    if term.codec == "low_rank":
        return a, b * float(term.scalar("scale"))
    return (a - 128) * store.read(term["a_scale"])[:, None], (b - 128) * store.read(term["b_scale"])


def _refuse() -> NoReturn:
    refuse("BC203", "a fine-tune holds values that are not finite")


def _stack_linears(places: Places, store: WeightStore, dtype: torch.dtype) -> SideWeights:
    held = {
        output: [side for side in members if side is not None]
        for output, members in enumerate(places.sides)
        if members[0] is not None
    }
    scales = {output: _vectors(members, "in_scale", store) for output, members in held.items()}
    outputs = [_output(output, members, places.biases[output], store, dtype) for output, members in held.items()]
    return SideWeights(
        low_rank=_low_rank({n: own for n, own in held.items() if own[0].rank}, places.rank, store, dtype),
        in_scales=tuple((outs, value.to(dtype)) for outs, value in _grouped(scales, alone=places.alone)),
        outputs=tuple(out for out in outputs if out is not None),
    )


def _low_rank(
    held: Mapping[int, Sequence[Side]], rank: int, store: WeightStore, dtype: torch.dtype
) -> LowRankWeights | None:
    """Outputs without such terms take no rank, since all members lack the same.

    Filled in place, one side at a time: with many fine-tunes the parts of a stack are as large as the stack.
    """
    if not held:
        return None
    members = next(iter(held.values()))
    slots, inputs = len(members), _thin(members[0])["a"].shape[1]
    a = store.slabs.zeros((slots, inputs, rank * len(held)), dtype)
    outputs: list[LowRankOutput] = []
    for number, (output, members) in enumerate(held.items()):
        start = rank * number
        width = _thin(members[0])["b"].shape[0]
        b = store.slabs.zeros((slots, rank, width), dtype)
        for slot, side in enumerate(members):
            own_a, own_b = read_low_rank(side, store, dtype)
            a[slot, :, start : start + len(own_a)] = own_a.t()
            b[slot, : own_b.shape[1]] = own_b.t()
        outputs.append(LowRankOutput(output=output, rank_start=start, rank_stop=start + rank, b=b))
    return LowRankWeights(a=a, outputs=tuple(outputs))


def _thin(side: Side) -> Term:
    """Any of its terms of low rank: all have the same ends."""
    return next(term for term in side.terms if term.rank)


def _output(
    output: int, members: Sequence[Side], base_bias: TensorRef | None, store: WeightStore, dtype: torch.dtype
) -> OutputSides | None:
    """Scale, bias, rows and further terms of one linear; None if it has none of them."""
    scale, bias = _vectors(members, "out_scale", store), _vectors(members, "bias", store)
    base = None if base_bias is None else store.read(base_bias).float()
    if bias is not None and base is not None:  # the product has the base's, and scale it is scaled along
        bias = bias - (base if scale is None else scale * base)
    rows = tuple(
        Rows(
            index=store.read(term["index"]).clone(),
            weight=store.read(term["weight"]).to(dtype),
            bias=None if base is None else base[store.read(term["index"])].to(dtype),
        )
        for side in members
        for term in side.of("rows")
    )
    additive = tuple(_additive(side, store, dtype) for side in members)
    if scale is None and bias is None and not rows and not any(additive):
        return None
    return OutputSides(
        output=output,
        scale=None if scale is None else scale.to(dtype),
        bias=None if bias is None else bias.to(dtype),
        rows=rows,
        additive=additive if any(additive) else (),
    )


def _vectors(members: Sequence[Side], codec: str, store: WeightStore) -> Tensor | None:
    """``[N, n]`` in float32; None where the members have none."""
    if not members[0].of(codec):
        return None
    return torch.stack([store.read(side.of(codec)[0]["value"]).float() for side in members])


def _grouped(scales: Mapping[int, Tensor | None], *, alone: bool) -> list[tuple[frozenset[int], Tensor]]:
    """Outputs that read the same scaled value, together."""
    groups: list[tuple[set[int], Tensor]] = []
    for output, scale in scales.items():
        if scale is None:
            continue
        known = next((outputs for outputs, other in groups if not alone and torch.equal(other, scale)), None)
        if known is None:
            groups.append(({output}, scale))
        else:
            known.add(output)
    return [(frozenset(outputs), scale) for outputs, scale in groups]


def _additive(side: Side, store: WeightStore, dtype: torch.dtype) -> tuple[Additive, ...]:
    """Terms that are not of low rank, in the order of the side."""
    return tuple(_ADDITIVE[term.codec](term, store, dtype) for term in side.terms if term.codec in _ADDITIVE)


def _sign(term: Term, store: WeightStore, dtype: torch.dtype) -> Additive:
    return SignChange(
        bits=store.read(term["bits"]).clone(), scale=store.read(term["scale"]).to(dtype),
        columns=int(term.scalar("columns")),
    )  # fmt: skip


def _sparse(term: Term, store: WeightStore, dtype: torch.dtype) -> Additive:
    index, columns = store.read(term["index"]), int(term.scalar("columns"))
    row, column = index.div(columns, rounding_mode="floor"), index.remainder(columns)
    return SparseChange(row=row, column=column, value=store.read(term["value"]).to(dtype))


def _group_int(term: Term, store: WeightStore, dtype: torch.dtype) -> Additive:
    index, group = term.get("index"), int(term.scalar("group"))
    kept = IntegerMatrix(
        codes=store.read(term["codes"]).clone(),
        scale=store.read(term["scale"]).to(dtype),
        shift=None,
        bits=int(term.scalar("bits")),
        group=group if index is None else group // 2,
    )
    return GroupIntChange(kept=kept, index=None if index is None else store.read(index).clone())


def _stack_tables(places: Places, store: WeightStore, dtype: torch.dtype) -> EmbeddingSides:
    members = places.members
    low_rank = _low_rank({0: members} if members[0].rank else {}, places.rank, store, dtype)
    rows = tuple(
        TableRows(index=store.read(term["index"]).clone(), weight=store.read(term["weight"]).to(dtype))
        for side in members
        for term in side.of("rows")
    )
    extends = any(len(own.index) and int(own.index[-1]) >= places.height for own in rows)
    return EmbeddingSides(
        a=None if low_rank is None else low_rank.a,
        b=None if low_rank is None else low_rank.outputs[0].b,
        rows=rows,
        extends=extends,
    )


def _stack_vectors(places: Places, store: WeightStore, dtype: torch.dtype) -> Tensor:
    """``[N, n]``."""
    return torch.stack([store.read(side.terms[0]["value"]).to(dtype) for side in places.members])


def _stack_bottlenecks(places: Places, store: WeightStore, dtype: torch.dtype) -> Bottlenecks:
    """Padded to one width: a row of zeros in ``up`` has no say, whatever the activation makes of zero."""
    terms = [side.of("bottleneck")[0] for side in places.members]
    width, hidden = padded_rank(terms[0]["down"].shape[0]), terms[0]["down"].shape[1]
    sizes = {"down": (width, hidden), "up": (hidden, width), "down_bias": (width,)}
    stacks: dict[str, Tensor] = {}
    for role, ref in terms[0].tensors:
        shape = sizes.get(role, ref.shape)
        stacks[role] = store.slabs.zeros((len(terms), *shape), dtype)
        for slot, term in enumerate(terms):
            value = store.read(term[role])
            if role in ("up", "up_bias"):
                value = value.float() * float(term.scalar("scale"))
            stacks[role][slot][tuple(slice(size) for size in value.shape)] = value.to(dtype)
            store.release(term[role])
    return Bottlenecks(
        down=stacks["down"].transpose(1, 2).contiguous(),
        up=stacks["up"].transpose(1, 2).contiguous(),
        down_bias=stacks.get("down_bias"),
        up_bias=stacks.get("up_bias"),
        before=(stacks["before_weight"], stacks["before_bias"]) if "before_weight" in stacks else None,
        after=(stacks["after_weight"], stacks["after_bias"]) if "after_weight" in stacks else None,
        activation=str(terms[0].scalar("activation")),
        reads=str(terms[0].scalar("reads")),
    )


def _stack_caches(places: Places, store: WeightStore, dtype: torch.dtype) -> CachedKv:
    terms = [side.of("cached")[0] for side in places.members]
    return CachedKv(
        keys=tuple(store.read(term["keys"]).to(dtype) for term in terms),
        values=tuple(store.read(term["values"]).to(dtype) for term in terms),
    )


# How terms are read that change a linear's matrix in another way: by codec.
_ADDITIVE: Mapping[str, Callable[[Term, WeightStore, torch.dtype], Additive]] = {
    "sign": _sign,
    "group_int": _group_int,
    "group_int24": _group_int,
    "sparse": _sparse,
}
_STACKS: Mapping[SiteKind, Callable[[Places, WeightStore, torch.dtype], Any]] = {
    "cache": _stack_caches,
    "embed": _stack_tables,
    "linear": _stack_linears,
    "residual": _stack_bottlenecks,
    "vector": _stack_vectors,
}
