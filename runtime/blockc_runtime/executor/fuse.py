"""Find rotary position embeddings and gated activations in a graph by their dataflow and call the ops for them.

    x * cos + cat([-x[h:], x[:h]]) * sin   ->   rotary(x, cos, sin, h)
    silu(gate) * up                        ->   gated(gate, up, "silu")

In: an fx graph of a structure. Out: the same graph with fewer launches.
Invariant: a graph without the pattern is unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from blockc_runtime.ops.aten import aten_function

_ADD = aten_function("aten.add.Tensor")
_MUL = aten_function("aten.mul.Tensor")
_CAT = aten_function("aten.cat.default")
_NEG = aten_function("aten.neg.default")
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
