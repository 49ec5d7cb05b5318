"""A structure as a callable.

In: a verified :class:`~blockc.ir.Structure`. Out: a :class:`Program`: an fx module without weights, one for all blocks
of the structure, whose arguments are all that differs between blocks and launches.
Invariant: linears that read the same value are one call; no other op is reordered or dropped.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from blockc.ir import Arg, Bound, DtypeArg, Op, Param, Place, SiteKind, Structure, Symbol, Value, sites_of
from blockc_runtime.executor.fuse import fuse_gates, fuse_heads, fuse_rotary
from blockc_runtime.executor.waiting import settle_between
from blockc_runtime.ops.aten import aten_function
from blockc_runtime.ops.dtypes import torch_dtype
from blockc_runtime.ops.encode import torch_
from blockc_runtime.ops.table import OpTable
from blockc_runtime.ops.vector.cpu import layer_norm, rms_norm, vector

# Kinds of site, beside linears, at which something is called.
_HOOKED = ("vector", "embed", "residual", "cache")


@dataclass(slots=True)
class LogitRows:
    """Where rows begin and end, which tokens ``select_rows`` keeps, and what it saw of all of them.

    ``spans``: first token and count of each row; ``index`` ``[R]`` into the token axis, None for all tokens in order;
    ``finite`` ``[T]`` is set by ``select_rows`` and ``pool``.
    """

    spans: tuple[tuple[int, int], ...]
    index: Tensor | None
    finite: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearGroup:
    """Linears that read one value: for each its weight's and bias' parameter names and its site, if it has one.

    ``after_selection``: the value holds the selected rows, not all tokens.
    """

    weights: tuple[str, ...]
    biases: tuple[str | None, ...]
    sites: tuple[str | None, ...]
    after_selection: bool
    kind: SiteKind = "linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteGroup:
    """A site that is no linear, by itself. ``param``: the parameter that it stands for, if any."""

    kind: SiteKind
    sites: tuple[str]
    after_selection: bool
    param: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """``call(T, logit_rows, *inputs, *contexts, *binds, *tensors, *linears, *layers, *sides, *kv_batches)``.

    ``sides``: one for each of ``groups``, the linears and then the other sites. ``tensors`` names the parameters that
    are passed as they are; ``windows`` holds each attention's window as the structure states it: a number, None, or
    the name of a bind. ``waits``: it may be run with kernels that wait; ``repeats``: as `repeats.py` has it. Returns
    the structure's only value, or a tuple.
    """

    structure: Structure
    call: Callable[..., Any]
    code: str
    tensors: tuple[str, ...]
    linears: tuple[LinearGroup, ...]
    sites: tuple[SiteGroup, ...]
    windows: tuple[int | Bound | None, ...]
    yields_rows: bool
    waits: bool
    repeats: bool

    @property
    def groups(self) -> tuple[LinearGroup | SiteGroup, ...]:
        """Whatever a fine-tune may act at, in the order of the call's ``sides``."""
        return (*self.linears, *self.sites)


def build_program(structure: Structure, ops: OpTable) -> Program:
    """Raises AttributeError for an op that this torch lacks."""
    return _Builder(structure, ops).build()


class _Builder:
    """State of one translation."""

    def __init__(self, structure: Structure, ops: OpTable) -> None:
        self.structure = structure
        self.ops = ops
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}
        self.groups = _linear_groups(structure)
        self.places = [place for place in sites_of(structure).values() if place.kind in _HOOKED]
        self.attentions = [op for op in structure.ops if op.target == "blockc.attention"]
        self.hooks = {op: place for place in self.places if place.kind in ("residual", "cache") for op in place.ops}

    def build(self) -> Program:
        structure, graph = self.structure, self.graph
        self.tokens = graph.placeholder("token_count")
        self.logit_rows = graph.placeholder("logit_rows")
        for name, _ in structure.inputs + structure.contexts:
            self.values[name] = graph.placeholder(f"value_{name}")
        self.binds = {name: graph.placeholder(f"bind_{name}") for name in structure.binds}
        tensors = _plain_params(structure)
        self.params = {name: graph.placeholder(f"param_{i}") for i, name in enumerate(tensors)}
        linears = self._placeholders("linear", len(self.groups))
        layers = self._placeholders("layer", len(self.attentions))
        sides = self._placeholders("sides", len(self.groups))
        self.sides = dict(
            zip([place.name for place in self.places], self._placeholders("site", len(self.places)), strict=True)
        )
        batches = self._placeholders("kv_batch", len(self.attentions))
        for place in self.places:
            if place.kind == "vector":
                self._emit_vector(place)
        self.linear_calls = {
            ops[0].result: (ops, weights, side) for ops, weights, side in zip(self.groups, linears, sides, strict=True)
        }
        self.caches = {
            op.result: pair for op, pair in zip(self.attentions, zip(layers, batches, strict=True), strict=True)
        }
        for op in structure.ops:
            self._emit(op)
        selected = _after_selection(structure)
        returned = tuple(self.values[name] for name in structure.returns)
        graph.output(returned[0] if len(returned) == 1 else returned)
        fuse_rotary(graph, self.ops.rotary)
        fuse_gates(graph, self.ops.gated)
        fuse_heads(graph, self.ops)
        graph.eliminate_dead_code()
        repeats = settle_between(graph, self.ops)
        graph.lint()
        module = fx.GraphModule(torch.nn.Module(), graph)
        return Program(
            structure=structure,
            call=module.forward,
            code=module.code,
            tensors=tensors,
            linears=tuple(_group_entry(ops, selected) for ops in self.groups),
            sites=tuple(
                SiteGroup(
                    kind=place.kind, sites=(place.name,), after_selection=place.after_selection, param=place.param
                )
                for place in self.places
            ),
            windows=tuple(_window(op) for op in self.attentions),
            yields_rows=any(op.target in ("blockc.select_rows", "blockc.pool") for op in structure.ops),
            waits=bool(self.ops.wait),
            repeats=repeats,
        )

    def _placeholders(self, name: str, count: int) -> list[fx.Node]:
        return [self.graph.placeholder(f"{name}_{i}") for i in range(count)]

    def _emit(self, op: Op) -> None:
        call = self.graph.call_function
        if op.target == "blockc.linear":
            self._emit_linear(op)
            return
        args = tuple(self._argument(arg) for arg in op.args)
        match op.target:
            case "blockc.attention":
                layer, batch = self.caches[op.result]
                node = call(self.ops.attention, (args[0], *self._cached(op, *args[1:3]), layer, batch, *args[3:]))
            case "aten.add.Tensor" if op.result in self.hooks:
                node = call(self.ops.residual, (*self._stream_first(op), self.sides[self.hooks[op.result].name]))
            case "blockc.embedding":
                node = call(self.ops.embedding, (*args[:2], self.sides.get(str(op.args[2]), ())))
            case "aten.layer_norm.default":
                node = call(layer_norm, args)
            case "aten.rms_norm.default":
                node = call(rms_norm, args)
            case "blockc.expert_linear":
                node = call(self.ops.expert_linear, args)
            case "blockc.topk_values":
                node = call(topk_values, args)
            case "blockc.topk_indices":
                node = call(topk_indices, args)
            case "blockc.rms_norm":
                node = call(self.ops.rms_norm, args)
            case "blockc.select_rows":
                node = call(select_rows, (args[0], self.logit_rows))
            case "blockc.encode":
                node = call(encode, (*args[:3], self.logit_rows, *args[3:]))
            case "blockc.pool":
                node = call(pool, (args[0], self.logit_rows, args[1]))
            case _:
                node = call(aten_function(op.target), args)
        self.values[op.result] = node

    def _emit_vector(self, place: Place) -> None:
        """The parameter itself, or one for each token."""
        assert place.param is not None
        spread = [-1 if isinstance(size, str) else size for size in place.spread]
        base = self.params[place.param]
        self.params[place.param] = self.graph.call_function(vector, (base, self.sides[place.name], spread))

    def _cached(self, op: Op, k: Any, v: Any) -> tuple[Any, Any]:
        """Keys and values, with those that fine-tunes have at the first positions."""
        if op.result not in self.hooks:
            return k, v
        both = self.graph.call_function(self.ops.cached, (k, v, self.sides[self.hooks[op.result].name]))
        key, value = (self.graph.call_function(operator.getitem, (both, i)) for i in range(2))
        return key, value

    def _stream_first(self, op: Op) -> tuple[Any, Any]:
        """The residual stream, and what is added to it."""
        one, other = op.args[:2]
        if one != Value(str(self.hooks[op.result].stream)):
            one, other = other, one
        return self._argument(one), self._argument(other)

    def _emit_linear(self, op: Op) -> None:
        """The first linear of a group stands for all: they need nothing but the value that it has."""
        if op.result not in self.linear_calls:
            return
        ops, weights, sides = self.linear_calls[op.result]
        x = self._argument(op.args[0])
        outputs = self.graph.call_function(self.ops.linears, (x, weights, sides))
        for i, member in enumerate(ops):
            node = self.graph.call_function(operator.getitem, (outputs, i))
            self.values[member.result] = node

    def _argument(self, arg: Arg) -> Any:
        match arg:
            case Value(name):
                return self.values[name]
            case Param(name):
                return self.params[name]
            case Bound(name):
                return self.binds[name]
            case Symbol():
                return self.tokens
            case DtypeArg(code):
                return torch_dtype(code)
            case tuple():
                return [self._argument(item) for item in arg]
            case _:
                return arg


def topk_values(x: Tensor, k: int) -> Tensor:
    """The k largest along the last axis, largest first."""
    return torch.topk(x, k).values


def topk_indices(x: Tensor, k: int) -> Tensor:
    """Where the k largest along the last axis stand."""
    return torch.topk(x, k).indices


def encode(q: Tensor, k: Tensor, v: Tensor, rows: LogitRows, *form: Any) -> Tensor:
    """Attention within each row, in both directions."""
    return torch_.encode(q, k, v, rows.spans, *form)


def pool(x: Tensor, rows: LogitRows, mode: str) -> Tensor:
    """One vector for each row; notes which of the T tokens are finite."""
    rows.finite = torch.isfinite(x[0].sum(-1))
    return torch_.pool(x, rows.spans, mode)


def select_rows(x: Tensor, rows: LogitRows) -> Tensor:
    """``x [1,T,F] -> [1,R,F]``; notes which of the T tokens are finite before the others are dropped."""
    rows.finite = torch.isfinite(x[0].sum(-1))
    return x if rows.index is None else x.index_select(1, rows.index)


def _linear_groups(structure: Structure) -> list[tuple[Op, ...]]:
    """Linears by the value that they read, in order of first execution."""
    groups: dict[Arg, list[Op]] = {}
    for op in structure.ops:
        if op.target == "blockc.linear":
            groups.setdefault(op.args[0], []).append(op)
    return [tuple(group) for group in groups.values()]


def _after_selection(structure: Structure) -> set[Arg]:
    """The values that hold rows in place of tokens."""
    values: set[Arg] = set()
    for op in structure.ops:
        if op.target in ("blockc.select_rows", "blockc.pool") or not values.isdisjoint(op.args):
            values.add(Value(op.result))
    return values


def _group_entry(ops: tuple[Op, ...], selected: set[Arg]) -> LinearGroup:
    weights: list[str] = []
    biases: list[str | None] = []
    sites: list[str | None] = []
    for op in ops:
        _, weight, bias, site = op.args
        if not isinstance(weight, Param) or not (site is None or isinstance(site, str)):
            raise AttributeError("a linear's weight is a parameter and its site a name or none")
        if bias is not None and not isinstance(bias, Param):
            raise AttributeError("a linear's bias is a parameter or none")
        weights.append(weight.name)
        biases.append(None if bias is None else bias.name)
        sites.append(site)
    return LinearGroup(
        weights=tuple(weights), biases=tuple(biases), sites=tuple(sites), after_selection=ops[0].args[0] in selected
    )


def _plain_params(structure: Structure) -> tuple[str, ...]:
    """Parameters that some op other than a linear reads, in order of declaration."""
    used: set[str] = set()
    for op in structure.ops:
        if op.target != "blockc.linear":
            used |= _param_names(op.args)
    return tuple(name for name, _ in structure.params if name in used)


def _param_names(args: tuple[Arg, ...]) -> set[str]:
    names: set[str] = set()
    for arg in args:
        if isinstance(arg, tuple):
            names |= _param_names(arg)
        elif isinstance(arg, Param):
            names.add(arg.name)
    return names


def _window(op: Op) -> int | Bound | None:
    window = op.args[4]
    if window is None or isinstance(window, int | Bound):
        return window
    raise AttributeError("an attention's window is a number, none or a bound scalar")
