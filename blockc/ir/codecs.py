"""Codecs: the forms in which a fine-tune's terms are kept, where each may stand, and what it means there.

At a *linear* ``y = s o (W (t o x)) + sum_i D_i x + b``: ``in_scale`` is t, ``rows`` replaces rows of W, ``out_scale``
is s, ``bias`` is the whole of b (without one it is ``s`` times the base's bias, as IA3 has it), and any number of
additive terms are the ``D_i``. This form is closed under stacking: what scales a linear with terms below it scales
those terms at compile time. At a *vector* ``value`` takes the parameter's place. At an *embed* ``rows`` replaces rows
of the table and appends new ones, ``low_rank`` adds to each row. At a *residual* ``bottleneck`` changes what is added
to the stream: with r the stream, y what is added to it and x what it ``reads`` (``sublayer`` y, ``stream`` r, ``sum``
r + y), the new stream is ``r + y + after(scale * (up act(down before(x) + down_bias) + up_bias))``, with ``before``
and ``after`` layer norms where their weights are there (eps 1e-5). At a *cache* ``cached`` gives the keys and values
of the first positions. Absent terms cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from blockc.ir.side import Side, Term
from blockc.ir.sites import Place, SiteKind

# What a bottleneck may have between its two matrices, and what it may read.
ACTIVATIONS = frozenset({"relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "leaky_relu"})
READS = frozenset({"sublayer", "stream", "sum"})
_CHOICES = MappingProxyType({("bottleneck", "activation"): ACTIVATIONS, ("bottleneck", "reads"): READS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """What terms of one codec hold.

    ``tensors``: role -> shape, in sizes of the site (capitals) and others that all its tensors have in common; roles
    with ``?`` may be absent. ``scalars``: name -> type. ``additive``: its terms add up, others stand alone at their
    site. ``meaning``: for people.
    """

    sites: frozenset[SiteKind]
    tensors: Mapping[str, tuple[str, ...]]
    scalars: Mapping[str, type]
    additive: bool
    meaning: str


def _codec(sites: str, tensors: str, meaning: str, *, additive: bool = False, **scalars: type) -> Codec:
    roles = dict(part.split("[") for part in tensors.split())
    return Codec(
        sites=frozenset(sites.split()),  # type: ignore[arg-type]
        tensors=MappingProxyType({role: tuple(shape.rstrip("]").split(",")) for role, shape in roles.items()}),
        scalars=MappingProxyType(scalars),
        additive=additive,
        meaning=meaning,
    )


# Sizes in capitals are the site's: of a linear OUT and IN, of a vector N, of a table VOCAB and HIDDEN, of the stream
# HIDDEN, of a cache HEADS and SIZE. At an embed site, IN is VOCAB and OUT is HIDDEN.
CODECS: Mapping[str, Codec] = MappingProxyType({
    "in_scale": _codec("linear", "value[IN]", "multiplies what the linear reads"),
    "rows": _codec("linear embed", "index[n] weight[n,WIDTH]", "rows of the matrix or table, replaced or new"),
    "low_rank": _codec("linear embed", "a[r,IN] b[OUT,r]", "scale * B A x", additive=True, scale=float),
    "low_rank_int8": _codec(
        "linear", "a[r,IN] a_scale[r] b[OUT,r] b_scale[r]",
        "B A x, a byte a value above 128, a scale for each column of B and row of A", additive=True,
    ),
    "sign": _codec(
        "linear", "bits[OUT,b] scale[OUT]", "scale or -scale for each value of a row, by a bit", additive=True,
        columns=int,
    ),
    "group_int": _codec(
        "linear", "codes[OUT,c] scale[OUT,g]", "integers of 4 or 8 bits, a scale for each group", additive=True,
        bits=int, group=int,
    ),
    "group_int24": _codec(
        "linear", "codes[OUT,c] index[OUT,i] scale[OUT,g]", "of each four values two, with their places", additive=True,
        bits=int, group=int,
    ),
    "sparse": _codec(
        "linear", "index[n] value[n]", "single values of the matrix, by their place in its rows one after the other",
        additive=True, rows=int, columns=int,
    ),
    "out_scale": _codec("linear", "value[OUT]", "multiplies what the base's matrix yields"),
    "bias": _codec("linear", "value[OUT]", "the whole bias, in place of the base's"),
    "value": _codec("vector", "value[N]", "the parameter itself, in place of the base's"),
    "bottleneck": _codec(
        "residual",
        "down[b,HIDDEN] up[HIDDEN,b] down_bias?[b] up_bias?[HIDDEN] before_weight?[HIDDEN] before_bias?[HIDDEN] "
        "after_weight?[HIDDEN] after_bias?[HIDDEN]",
        "a small network beside what is added to the stream",
        activation=str, reads=str, scale=float,
    ),
    "cached": _codec("cache", "keys[n,HEADS,SIZE] values[n,HEADS,SIZE]", "keys and values of the first positions"),
})  # fmt: skip


def sizes_of(place: Place) -> dict[str, int]:
    """The sizes that a site fixes, by the names that `CODECS` uses."""
    match place.kind:
        case "linear":
            return {"OUT": place.shape[0], "IN": place.shape[1], "WIDTH": place.shape[1]}
        case "embed":
            vocab, hidden = place.shape
            return {"VOCAB": vocab, "HIDDEN": hidden, "IN": vocab, "OUT": hidden, "WIDTH": hidden}
        case "vector":
            return {"N": place.shape[0]}
        case "residual":
            return {"HIDDEN": place.shape[0]}
        case "cache":
            return {"HEADS": place.shape[0], "SIZE": place.shape[1]}


def side_problems(place: Place, side: Side) -> Iterator[str]:
    """What is wrong with a side at its site: unknown codecs, missing or misshapen tensors, doubles."""
    if not side.terms:
        yield f"the side at {place.name} has no terms"
    alone: set[str] = set()
    for term in side.terms:
        codec = CODECS.get(term.codec)
        if codec is None or place.kind not in codec.sites:
            yield f"{term.codec} cannot stand at {place.name}, a site of the kind {place.kind}"
            continue
        if not codec.additive and term.codec in alone:
            yield f"two terms of {term.codec} stand at {place.name}"
        alone.add(term.codec)
        yield from _term_problems(place, term, codec)


def _term_problems(place: Place, term: Term, codec: Codec) -> Iterator[str]:
    sizes: dict[str, int] = sizes_of(place)
    held = dict(term.tensors)
    required = {role for role in codec.tensors if not role.endswith("?")}
    allowed = {role.rstrip("?"): shape for role, shape in codec.tensors.items()}
    if not required <= held.keys() <= allowed.keys():
        yield f"{term.codec} at {place.name} holds {', '.join(sorted(held)) or 'nothing'}"
        return
    for role, tensor in held.items():
        wanted = allowed[role]
        fits = len(tensor.shape) == len(wanted)
        for size, name in zip(tensor.shape, wanted, strict=False):
            fits &= sizes.setdefault(name, size) == size
        if not fits:
            yield f"{role} of {term.codec} at {place.name} is {list(tensor.shape)}, not [{', '.join(wanted)}]"
    scalars = dict(term.scalars)
    if scalars.keys() != codec.scalars.keys():
        yield f"{term.codec} at {place.name} has the scalars {', '.join(sorted(scalars)) or 'none'}"
    for name, value in scalars.items():
        if name in codec.scalars and type(value) is not codec.scalars[name]:
            yield f"{name} of {term.codec} at {place.name} is no {codec.scalars[name].__name__}"
        elif (choices := _CHOICES.get((term.codec, name))) is not None and value not in choices:
            yield f"{name} of {term.codec} at {place.name} is {value!r}"
    for norm in ("before", "after"):
        if (f"{norm}_weight" in held) != (f"{norm}_bias" in held):
            yield f"{term.codec} at {place.name} has half a norm"
