"""Find rotary position embeddings in a graph by their dataflow and call the op for them.

    x * cos + cat([-x[h:], x[:h]]) * sin   ->   rotary(x, cos, sin, h)

In: an fx graph of a structure. Out: the same graph, fewer launches. Invariant: a graph without the pattern is unchanged.
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
_SLICE = aten_function("aten.slice.Tensor")


def fuse_rotary(graph: fx.Graph, rotary: Callable[..., Any]) -> None:
    """Rewrite in place; the dead nodes are left for the caller's dead code elimination."""
    for node in graph.nodes:
        found = _match(node)
        if found is not None:
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.call_function(rotary, found))


def _match(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node, int] | None:
    """(x, cos, sin, h) if ``node`` adds up a rotary embedding."""
    if node.target is not _ADD or len(node.args) != 2:
        return None
    for straight, turned in (node.args, node.args[::-1]):
        if not (_calls(straight, _MUL) and _calls(turned, _MUL)):
            continue
        for rotated, sin in (turned.args, turned.args[::-1]):
            found = _rotated_half(rotated)
            if found is not None and found[0] in straight.args:
                x, half = found
                cos = straight.args[1] if straight.args[0] is x else straight.args[0]
                return x, cos, sin, half
    return None


def _rotated_half(node: Any) -> tuple[fx.Node, int] | None:
    """(x, h) if ``node`` is ``cat([-x[..., h:], x[..., :h]], -1)``."""
    if not _calls(node, _CAT) or len(node.args[0]) != 2 or node.args[1] not in (-1, 3):
        return None
    negated, first = node.args[0]
    if not (_calls(negated, _NEG) and _calls(first, _SLICE) and _calls(negated.args[0], _SLICE)):
        return None
    x, dim, start, half = first.args
    other, other_dim, other_start, other_end = negated.args[0].args
    same = other is x and dim == other_dim and dim in (-1, 3)
    whole = start == 0 and other_start == half and other_end >= 2 * half
    return (x, half) if same and whole else None


def _calls(node: Any, target: Callable[..., Any]) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is target
