"""Find what has an op of its own in a graph by its dataflow, and call the op.

    x * cos + cat([-x[h:], x[:h]]) * sin   ->   rotary(x, cos, sin, h)
    silu(gate) * up                        ->   gated(gate, up, "silu")
    attention(rotary(q'), *cached(rotary(k'), v'))   ->   heads(q, k, v), where q' is q [1, T, H * D] as [1, H, T, D]

In: an fx graph of a structure. Out: the same graph with fewer launches.
Invariant: a graph without the pattern is unchanged.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from blockc_runtime.ops.aten import aten_function
from blockc_runtime.ops.table import OpTable

_ADD = aten_function("aten.add.Tensor")
_MUL = aten_function("aten.mul.Tensor")
_CAT = aten_function("aten.cat.default")
_NEG = aten_function("aten.neg.default")
_RESHAPE = aten_function("aten.reshape.default")
_TRANSPOSE = aten_function("aten.transpose.int")
_SILU = aten_function("aten.silu.default")
_GELU = aten_function("aten.gelu.default")
_SLICE = aten_function("aten.slice.Tensor")


def fuse_rotary(graph: fx.Graph, rotary: Callable[..., Any]) -> None:
    """Rewrite in place; the dead nodes are left for the caller's dead code elimination."""
    for node in graph.nodes:
        found = _match(node)
        if found is not None:
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.call_function(rotary, found))


def fuse_gates(graph: fx.Graph, gated: Callable[..., Any]) -> None:
    """As `fuse_rotary`. An activation that something else reads, too, stays."""
    for node in graph.nodes:
        factors = _arguments(node, _MUL)
        for act, up in () if factors is None else (factors, factors[::-1]):
            name = _activation(act)
            if name is not None and len(act.users) == 1 and up is not act:
                with graph.inserting_before(node):
                    node.replace_all_uses_with(graph.call_function(gated, (act.args[0], up, name)))
                break


def fuse_heads(graph: fx.Graph, ops: OpTable) -> None:
    """Attention with all that stands between it and linears becomes one call, where there is an op for that."""
    if ops.heads is None:
        return
    for node in graph.nodes:
        if node.target is ops.attention and (found := _heads(node, ops)) is not None:
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.call_function(ops.heads, (*found, *node.args[3:])))


def _heads(node: fx.Node, ops: OpTable) -> tuple[Any, ...] | None:
    """(q, k, v, counts, angles, sides) if queries, keys and values are plain parts of what linears yield."""
    q, k, v = node.args[:3]
    sides: Any = ()
    both = _arguments(k, operator.getitem)
    if both is not None and (given := _arguments(both[0], ops.cached)) is not None:
        if _arguments(v, operator.getitem) != (both[0], 1) or both[1] != 0:
            return None
        k, v, sides = given
    turned_q, turned_k = _arguments(q, ops.rotary), _arguments(k, ops.rotary)
    angles: tuple[Any, ...] = ()
    if turned_q is not None and turned_k is not None and turned_q[1:] == turned_k[1:]:
        q, k, angles = turned_q[0], turned_k[0], turned_q[1:3]
    parts = [_parted(x) for x in (q, k, v)]
    if None in parts:
        return None
    (q, count), (k, kv_count), (v, values) = parts  # type: ignore[misc]
    return (q, k, v, [count, kv_count], list(angles), sides) if kv_count == values else None


def _parted(node: Any) -> tuple[Any, int] | None:
    """(x, n) if ``node`` is ``x [1, T, n * D]`` as ``[1, n, T, D]``."""
    turned = _arguments(node, _TRANSPOSE)
    shaped = None if turned is None or turned[1:] != (1, 2) else _arguments(turned[0], _RESHAPE)
    if shaped is None or len(shaped[1]) != 4 or not isinstance(shaped[1][2], int):
        return None
    return shaped[0], shaped[1][2]


def _activation(node: Any) -> str | None:
    """The name of a gate that has an op, if ``node`` is one."""
    if _arguments(node, _SILU) is not None:
        return "silu"
    arguments = _arguments(node, _GELU)
    return "gelu_tanh" if arguments is not None and arguments[1:] == ("tanh",) else None


def _match(node: fx.Node) -> tuple[Any, ...] | None:
    """(x, cos, sin, h) if ``node`` adds up a rotary embedding."""
    terms = _arguments(node, _ADD)
    if terms is None:
        return None
    for first, second in (terms, terms[::-1]):
        straight, turned = _arguments(first, _MUL), _arguments(second, _MUL)
        if straight is None or turned is None:
            continue
        for rotated, sin in (turned, turned[::-1]):
            x, half = _rotated_half(rotated)
            if x is not None and any(factor is x for factor in straight):
                cos = straight[1] if straight[0] is x else straight[0]
                return x, cos, sin, half
    return None


def _rotated_half(node: Any) -> tuple[Any, int]:
    """(x, h) if ``node`` is ``cat([-x[..., h:], x[..., :h]], -1)``, else (None, 0)."""
    joined = _arguments(node, _CAT)
    if joined is None or len(joined[0]) != 2 or joined[1] not in (-1, 3):
        return None, 0
    negated, first = _arguments(joined[0][0], _NEG), _arguments(joined[0][1], _SLICE)
    second = None if negated is None else _arguments(negated[0], _SLICE)
    if first is None or second is None:
        return None, 0
    x, dim, start, half = first
    same = second[0] is x and second[1] == dim and dim in (-1, 3)
    whole = start == 0 and second[2] == half and second[3] >= 2 * half
    return (x, half) if same and whole else (None, 0)


def _arguments(node: Any, target: Callable[..., Any]) -> tuple[Any, ...] | None:
    """The arguments of ``node`` if it calls ``target``."""
    return node.args if isinstance(node, fx.Node) and node.target is target else None
