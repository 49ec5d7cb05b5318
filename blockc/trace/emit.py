"""fx nodes of one block -> its canonical ``Structure`` and what the occurrence binds to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from blockc.ir import (
    DTYPE_CODE,
    Arg,
    Bound,
    DtypeArg,
    Op,
    Param,
    Structure,
    StructureError,
    Symbol,
    Value,
    ValueType,
    verify_structure,
)
from blockc.trace import nodes
from blockc.trace.attention import UntraceableError
from blockc.trace.model import KvLayer, Source, TracedBlock

_OURS = {
    nodes.embedding: "blockc.embedding",
    nodes.pool: "blockc.pool",
    nodes.rms_norm: "blockc.rms_norm",
    nodes.topk_indices: "blockc.topk_indices",
    nodes.topk_values: "blockc.topk_values",
}
_ATTENTIONS = {
    torch.ops.blockc.attention.default: "blockc.attention",
    torch.ops.blockc.encode.default: "blockc.encode",
}
_ATTENTION_BINDS = ("scale", "window", "softcap")


@dataclass(slots=True)
class _Emitter:
    """Builds one structure. ``strip`` is the prefix of the layer, left out of parameter and site names."""

    names: Mapping[str, str]  # placeholder -> full parameter name
    strip: str
    inputs: dict[fx.Node, str]
    contexts: dict[fx.Node, str]
    values: dict[fx.Node, str] = field(default_factory=dict)
    params: dict[str, tuple[ValueType, Source]] = field(default_factory=dict)
    binds: dict[str, float | int | None] = field(default_factory=dict)
    sites: dict[str, str] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    selected: bool = False

    def emit(self, node: fx.Node) -> None:
        """Append the op of ``node``."""
        if node.target in _ATTENTIONS:
            target, args = _ATTENTIONS[node.target], self._attention(node)
        elif node.target is nodes.linear:
            target, args = "blockc.linear", self._linear(node)
        elif node.target is torch.ops.blockc.expert_linear.default:
            target, args = "blockc.expert_linear", self._expert_linear(node)
        elif node.target in _OURS:
            target, args = _OURS[node.target], tuple(self.arg(item) for item in node.args)
        else:
            if node.kwargs:
                raise UntraceableError(f"{node.target} with {', '.join(sorted(node.kwargs))}")
            target, args = str(node.target), tuple(self.arg(item) for item in node.args)
        self.values[node] = str(len(self.ops))
        self.ops.append(Op(result=self.values[node], target=target, args=args))

    def arg(self, item: Any, *, transposed: bool = False) -> Arg:
        """One argument in the structure's terms."""
        match item:
            case fx.Node() if item in self.values:
                return Value(self.values[item])
            case fx.Node() if item in self.inputs:
                return Value(self.inputs[item])
            case fx.Node() if item in self.contexts:
                return Value(self.contexts[item])
            case fx.Node() if item.name in self.names:
                return self._param(item, transposed)
            case list() | tuple():
                return tuple(Symbol("T") if part == "T" else self.arg(part) for part in item)
            case torch.dtype():
                return DtypeArg(_dtype_code(item))
            case None | bool() | int() | float():
                return item
            case str():
                return item.removeprefix(self.strip) if self.strip else item
        raise UntraceableError(f"an argument of the kind {type(item).__name__}")

    def _param(self, node: fx.Node, transposed: bool) -> Param:
        full = self.names[node.name]
        name = full.removeprefix(self.strip)
        shape = tuple(int(dim) for dim in node.meta["val"].shape)
        source = Source(name=full, transform="transpose" if transposed else "none")
        shape = (*shape[:-2], shape[-1], shape[-2]) if transposed else shape
        type_ = ValueType(dtype=_dtype_code(node.meta["val"].dtype), shape=shape)
        if self.params.setdefault(name, (type_, source)) != (type_, source):
            raise UntraceableError(f"the parameter {full} is used in two ways")
        return Param(name)

    def _linear(self, node: fx.Node) -> tuple[Arg, ...]:
        x, weight, bias, path, transposed = node.args
        matrix = self.arg(weight, transposed=bool(transposed))
        if path is None:
            return self.arg(x), matrix, self.arg(bias), None
        site = str(path).removeprefix(self.strip)
        if site in self.sites:
            raise UntraceableError(f"the linear {path} is used twice in a block")
        self.sites[site] = str(path)
        return self.arg(x), matrix, self.arg(bias), site

    def _expert_linear(self, node: fx.Node) -> tuple[Arg, ...]:
        x, weight, bias, index, transposed = node.args
        return self.arg(x), self.arg(weight, transposed=bool(transposed)), self.arg(bias), self.arg(index)

    def _attention(self, node: fx.Node) -> tuple[Arg, ...]:
        index = sum(op.target in _ATTENTIONS.values() for op in self.ops)
        bound: list[Arg] = []
        for name, value in zip(_ATTENTION_BINDS, node.args[3:6], strict=True):
            assert value is None or isinstance(value, int | float)
            self.binds[f"{name}{index}"] = value
            bound.append(Bound(f"{name}{index}"))
        sinks = [self.arg(item) for item in node.args[6:] if item is not None]
        return (*(self.arg(item) for item in node.args[:3]), *bound, *sinks)


def emit_block(
    run: Sequence[fx.Node],
    *,
    names: Mapping[str, str],
    strip: str,
    inputs: Mapping[fx.Node, str],
    contexts: Sequence[fx.Node],
    returns: Sequence[fx.Node],
    select_rows: bool,
) -> TracedBlock:
    """One block. ``inputs`` names the values that come from outside; ``contexts`` are all outputs of the prelude.

    ``select_rows``: the block computes logits, and its hidden input is first narrowed to the rows that want them.
    """
    inside = set(run)
    read = {arg for node in run for arg in node.all_input_nodes if arg not in inside}
    used_contexts = [index for index, node in enumerate(contexts) if node in read]
    emitter = _Emitter(
        names=names,
        strip=strip,
        inputs={node: name for node, name in inputs.items() if node in read},
        contexts={contexts[index]: f"c{position}" for position, index in enumerate(used_contexts)},
    )
    declared = tuple((name, _type(node)) for node, name in emitter.inputs.items())
    if select_rows:
        hidden = next(node for node, name in emitter.inputs.items() if name == "x")
        emitter.ops.append(Op(result="0", target="blockc.select_rows", args=(Value("x"),)))
        emitter.values[hidden] = "0"
    for node in run:
        emitter.emit(node)
    if any(node.target is nodes.pool for node in run):  # one vector a text: [R,F] as the [1,R,F] that logits are
        result = str(len(emitter.ops))
        emitter.ops.append(
            Op(result=result, target="aten.unsqueeze.default", args=(Value(emitter.values[returns[0]]), 0))
        )
        emitter.values[returns[0]] = result
    structure = Structure(
        inputs=declared,
        contexts=tuple((name, _type(node)) for node, name in emitter.contexts.items()),
        binds=tuple(emitter.binds),
        params=tuple((name, type_) for name, (type_, _) in emitter.params.items()),
        ops=tuple(emitter.ops),
        returns=tuple(emitter.values.get(node) or emitter.inputs[node] for node in returns),
    )
    try:
        verify_structure(structure)
    except StructureError as error:
        raise UntraceableError(str(error)) from error
    return TracedBlock(
        structure=structure,
        binds=emitter.binds,
        sources={name: source for name, (_, source) in emitter.params.items()},
        contexts=tuple(used_contexts),
        sites=emitter.sites,
    )


def kv_layers(ops: Sequence[fx.Node]) -> list[KvLayer]:
    """The caches that a block's attention ops need, in order."""
    found: list[KvLayer] = []
    for node in ops:
        if node.target is not torch.ops.blockc.attention.default:
            continue
        key, value = node.args[1].meta["val"], node.args[2].meta["val"]  # type: ignore[union-attr]
        assert key.shape[3] == value.shape[3], "keys and values are padded to one size"
        window = node.args[4]
        assert window is None or isinstance(window, int)
        found.append(KvLayer(kv_heads=int(key.shape[1]), head_dim=int(key.shape[3]), window=window))
    return found


def _type(node: fx.Node) -> ValueType:
    shape = tuple("T" if dim == "T" else int(dim) for dim in nodes.shape_of(node))
    return ValueType(dtype=_dtype_code(node.meta["val"].dtype), shape=shape)  # type: ignore[arg-type]


def _dtype_code(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPE_CODE:
        raise UntraceableError(f"a value of the dtype {name}")
    return DTYPE_CODE[name]
