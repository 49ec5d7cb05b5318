"""The places in a structure where a fine-tune may act, found from its ops.

In: a verified structure. Out: a :class:`Place` for each site, by name. Five kinds:

- *linear*: a ``blockc.linear`` with a name; what it multiplies by, and its result.
- *vector*: a parameter of one dimension that is broadcast over the tokens: weights and biases of norms, scales.
- *embed*: the table that token ids are looked up in.
- *residual*: what a sublayer adds to the residual stream, before the addition; in order ``residual.0``, ...
- *cache*: the keys and values that an attention op caches; in order ``attention.0``, ...

Names of linears and tables are the module paths that PEFT uses, those of vectors the parameter names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from blockc.ir.infer import Types, value_types
from blockc.ir.structure import Arg, Dim, Op, Param, Structure, Value

SiteKind = Literal["linear", "vector", "embed", "residual", "cache"]

# Operand of a norm that is multiplied or added to each token's normalised values.
_NORM_VECTORS = {"blockc.rms_norm": (1,), "aten.layer_norm.default": (2, 3), "aten.rms_norm.default": (2,)}
_BINARY = frozenset({"aten.add.Tensor", "aten.mul.Tensor", "aten.sub.Tensor", "aten.div.Tensor"})
_UNARY = frozenset({"aten.to.dtype", "aten.rsub.Scalar", "aten.neg.default", "aten.exp.default"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A site. ``ops``: results of the ops that it acts at; ``param``: the parameter that it stands for, if any.

    ``shape``: of a linear's matrix ``[out, in]``, a vector ``[n]``, a table ``[vocab, hidden]``, the residual stream
    ``[hidden]``, cached keys ``[heads, size]``. ``dtype``: of the values there. ``spread``: for a vector, the shape in
    which one for each token meets the values, with 1 for axes that it does not have. ``bias``: the parameter that is a
    linear's bias, if it has one. ``stream``: the value that is the residual stream before the sum.
    """

    name: str
    kind: SiteKind
    ops: frozenset[str]
    param: str | None
    shape: tuple[int, ...]
    dtype: str
    after_selection: bool
    spread: tuple[Dim, ...] = ()
    bias: str | None = None
    stream: str | None = None


@lru_cache(maxsize=1024)
def sites_of(structure: Structure) -> Mapping[str, Place]:
    """All sites by name, in order of execution within each kind."""
    types = value_types(structure)
    params = dict(structure.params)
    found: dict[str, Place] = {}
    for op in structure.ops:
        bias = None
        if op.target == "blockc.linear" and isinstance(op.args[3], str) and isinstance(op.args[1], Param):
            weight = params[op.args[1].name]
            name, kind, param = op.args[3], "linear", op.args[1].name
            bias = op.args[2].name if isinstance(op.args[2], Param) else None
        elif op.target == "blockc.embedding" and op.args[0] == Value("tokens") and isinstance(op.args[1], Param):
            weight = params[op.args[1].name]
            name, kind, param = str(op.args[2]), "embed", op.args[1].name
        else:
            continue
        found[name] = Place(
            name=name, kind=kind, ops=frozenset({op.result}), param=param,  # type: ignore[arg-type]
            shape=tuple(int(size) for size in weight.shape), dtype=weight.dtype,
            after_selection=_selected(types, op.result), bias=bias,
        )  # fmt: skip
    found |= {place.name: place for place in (*_vectors(structure, types), *_residuals(structure, types))}
    found |= {place.name: place for place in _caches(structure, types)}
    return found


def place_of(structure: Structure, param: str) -> Place | None:
    """The site at which a parameter can be changed: as a vector, as a linear's bias, or as a matrix or table."""
    return next((place for place in sites_of(structure).values() if param in (place.param, place.bias)), None)


def _vectors(structure: Structure, types: Types) -> Iterator[Place]:
    for name, type_ in structure.params:
        if len(type_.shape) == 1:
            spread = _Spread(structure, types, type_.shape[0])
            if spread.follow(Param(name)) and len(spread.shapes) == 1:
                shape = spread.shapes.pop()
                yield Place(
                    name=name, kind="vector", ops=frozenset(spread.ops), param=name, shape=(int(type_.shape[0]),),
                    dtype=type_.dtype, after_selection="R" in shape, spread=shape,
                )  # fmt: skip


class _Spread:
    """Follows a vector to the values of tokens that it is combined with."""

    def __init__(self, structure: Structure, types: Types, size: Dim) -> None:
        self.structure, self.types, self.size = structure, types, size
        self.shapes: set[tuple[Dim, ...]] = set()
        self.ops: set[str] = set()

    def follow(self, operand: Param | Value) -> bool:
        """Whether every use broadcasts the operand over tokens."""
        users = [op for op in self.structure.ops if operand in op.args]
        nested = any(isinstance(arg, tuple) and operand in arg for op in self.structure.ops for arg in op.args)
        returned = isinstance(operand, Value) and operand.name in self.structure.returns
        return bool(users) and not nested and not returned and all(self._use(op, operand) for op in users)

    def _use(self, op: Op, operand: Param | Value) -> bool:
        if op.target in _NORM_VECTORS:
            if any(arg == operand and place not in _NORM_VECTORS[op.target] for place, arg in enumerate(op.args)):
                return False
            return self._meet(op, op.args[0])
        if op.target in _UNARY and op.args[0] == operand:
            return self.follow(Value(op.result))
        if op.target not in _BINARY:
            return False
        others = [arg for arg in op.args if arg != operand]
        if len(others) != 1:
            return False
        if not isinstance(others[0], Value | Param):
            return self.follow(Value(op.result))  # with a number: still a vector
        return self._meet(op, others[0])

    def _meet(self, op: Op, other: Arg) -> bool:
        """One row of the vector for each token of ``other``."""
        type_ = self.types.get(other.name) if isinstance(other, Value) else None
        if type_ is None:
            return False
        axes = [axis for axis, size in enumerate(type_.shape) if size in ("T", "R")]
        if len(axes) != 1 or type_.shape[-1] != self.size:
            return False
        self.ops.add(op.result)
        last = len(type_.shape) - 1
        self.shapes.add(tuple(size if axis in (axes[0], last) else 1 for axis, size in enumerate(type_.shape)))
        return True


def _residuals(structure: Structure, types: Types) -> Iterator[Place]:
    """The stream is the block's input and each sum that it enters, to the value that is returned."""
    names = {name for name, _ in structure.inputs} - {"tokens", "positions"}
    if len(names) != 1 or len(structure.returns) != 1:
        return
    stream = names.pop()
    count = 0
    for op in structure.ops:
        if op.target != "aten.add.Tensor" or Value(stream) not in op.args:
            continue
        type_ = types.get(op.result)
        if type_ is None or type_ != types.get(stream) or not all(isinstance(arg, Value) for arg in op.args):
            continue
        yield Place(
            name=f"residual.{count}", kind="residual", ops=frozenset({op.result}), param=None,
            shape=(int(type_.shape[-1]),), dtype=type_.dtype, after_selection=False, stream=stream,
        )  # fmt: skip
        count += 1
        stream = op.result


def _caches(structure: Structure, types: Types) -> Iterator[Place]:
    attentions = [op for op in structure.ops if op.target == "blockc.attention"]
    for number, op in enumerate(attentions):
        keys = types.get(op.args[1].name) if isinstance(op.args[1], Value) else None
        if keys is not None and all(isinstance(keys.shape[axis], int) for axis in (1, 3)):
            yield Place(
                name=f"attention.{number}", kind="cache", ops=frozenset({op.result}), param=None,
                shape=(int(keys.shape[1]), int(keys.shape[3])), dtype=keys.dtype, after_selection=False,
            )  # fmt: skip


def _selected(types: Types, name: str) -> bool:
    type_ = types.get(name)
    return type_ is not None and "R" in type_.shape
