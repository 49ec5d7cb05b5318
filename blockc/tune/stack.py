"""Sides of a fine-tune on top of another, composed into the normal form of `blockc.ir.codecs`.

In: the sides of a chain, and those that a fine-tune adds. Out: sides that are both. Invariant: at each site the result
is the upper one applied to what the lower one makes of the base. Where that has no normal form it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blockc.ir import DTYPE_NAME, Side, Site, TensorRef, Term, term
from blockc.tune.full import tensor_ref
from blockc.tune.stored import read_tensor
from blockc.zoo import Zoo


class StackError(ValueError):
    """Two fine-tunes that cannot be composed at a site."""


def stack_sides(
    below: tuple[Side, ...],
    above: tuple[Side, ...],
    *,
    zoo: Zoo | None = None,
    resets: frozenset[Site] = frozenset(),
) -> tuple[Side, ...]:
    """At each site both, the lower one first; nothing of it at ``resets``. Raises `StackError`.

    ``zoo``: where scaled tensors go; None where no fine-tune above scales anything.
    """
    terms: dict[Site, tuple[Term, ...]] = {side.site: side.terms for side in below if side.site not in resets}
    for side in above:
        terms[side.site] = _on_top(side.site, terms.get(side.site, ()), side.terms, zoo)
    return tuple(Side(site=site, terms=terms[site]) for site in sorted(terms))


def _on_top(site: Site, below: Sequence[Term], above: Sequence[Term], zoo: Zoo | None) -> tuple[Term, ...]:
    codecs = {one.codec for one in above}
    if not below:
        return tuple(above)
    if "value" in codecs:
        return tuple(above)
    if "rows" in codecs and any(one.codec != "rows" and one.codec != "bias" for one in below):
        raise StackError(f"it replaces rows at `{site.name}`, where a fine-tune below acts in another way")
    if any(_crosses(rows, one) for rows in below for one in above):
        raise StackError(f"it changes rows of the table `{site.name}` that a fine-tune below replaces")
    if "cached" in codecs:
        raise StackError("a prefix stands on another prefix")
    if "bottleneck" in codecs:
        raise StackError(f"a bottleneck stands on another one at `{site.name}`")
    found = list(below)
    for codec in ("in_scale", "out_scale"):
        for one in (one for one in above if one.codec == codec):
            found = [_scaled(other, codec, one["value"], zoo) for other in found]
            if not any(other.codec == codec for other in found):
                found.append(one)
    for one in above:
        if one.codec in ("bias", "rows"):
            older = [other for other in found if other.codec == one.codec]
            found = [other for other in found if other.codec != one.codec]
            found.append(one if one.codec == "bias" or not older else _both_rows(older[0], one, zoo))
        elif one.codec not in ("in_scale", "out_scale"):
            found.append(one)
    return tuple(found)


def _crosses(rows: Term, one: Term) -> bool:
    """Whether a term of low rank acts on a table whose rows are replaced: there the replaced rows stand alone."""
    return rows.codec == "rows" and one.codec == "low_rank" and rows["weight"].shape[1] != one["a"].shape[1]


def _scaled(one: Term, by: str, scale: TensorRef, zoo: Zoo | None) -> Term:
    """A term of the lower fine-tune whose input (`in_scale`) or output (`out_scale`) the upper one scales."""
    match one.codec, by:
        case ("in_scale", "in_scale") | ("out_scale" | "bias", "out_scale"):
            return term(one.codec, {"value": _times(one["value"], scale, zoo, columns=True)})
        case "low_rank", "in_scale":
            a = _times(one["a"], scale, zoo, columns=True)
            return term("low_rank", {"a": a, "b": one["b"]}, scale=one.scalar("scale"))
        case "low_rank", "out_scale":
            b = _times(one["b"], scale, zoo, columns=False)
            return term("low_rank", {"a": one["a"], "b": b}, scale=one.scalar("scale"))
        case ("rows" | "out_scale" | "bias", "in_scale") | ("rows" | "in_scale", "out_scale"):
            return one  # the normal form scales what they replace, and outputs are not inputs
    raise StackError(f"a term of {one.codec} below cannot be scaled")


def _times(ref: TensorRef, scale: TensorRef, zoo: Zoo | None, *, columns: bool) -> TensorRef:
    assert zoo is not None, "whoever scales has tensors"
    vector = read_tensor(zoo, scale).float()
    value = read_tensor(zoo, ref).float() * (vector if columns else vector[:, None])
    return _stored(value.to(getattr(torch, DTYPE_NAME[ref.dtype])), zoo)


def _both_rows(below: Term, above: Term, zoo: Zoo | None) -> Term:
    assert zoo is not None, "whoever replaces rows has tensors"
    rows: dict[int, torch.Tensor] = {}
    for one in (below, above):
        rows |= dict(zip(read_tensor(zoo, one["index"]).tolist(), read_tensor(zoo, one["weight"]), strict=True))
    index = sorted(rows)
    weight = torch.stack([rows[at] for at in index])
    return term("rows", {"index": _stored(torch.tensor(index), zoo), "weight": _stored(weight, zoo)})


def _stored(value: torch.Tensor, zoo: Zoo) -> TensorRef:
    ref, data = tensor_ref(value)
    zoo.put_tensors([(ref, data)])
    return ref
