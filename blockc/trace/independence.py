"""Refuse graphs in which tokens of one request could change those of another.

A step holds the tokens of many requests on one axis. Attention knows where a request ends; any other op that
reduces, contracts, reorders or cuts that axis would mix them. (Dynamic rotary embeddings take the maximum of *all*
positions: with them a long neighbour changes other rows.)
"""

from __future__ import annotations

import torch
from torch import fx

from blockc.trace import nodes
from blockc.trace.attention import UntraceableError
from blockc.trace.nodes import aten, shape_of
from blockc.trace.shapes import DIMENSION


def check_token_independence(graph: fx.Graph) -> None:
    """Raise :class:`UntraceableError` at the first op that is not known to keep tokens apart."""
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        tokens_in = any("T" in shape_of(argument) for argument in node.all_input_nodes)
        if not tokens_in or node.target is nodes.pool:
            continue
        if "T" not in shape_of(node):
            raise UntraceableError(f"{node.target} reduces over the tokens")
        if node.target in DIMENSION:
            _check_dimension(node)
        if node.target is torch.ops.blockc.expert_linear.default and _over_tokens(node):
            raise UntraceableError("experts that choose tokens")
        if node.target is aten.matmul.default:
            left, right = node.args
            assert isinstance(left, fx.Node)
            assert isinstance(right, fx.Node)
            if shape_of(left)[-1] == "T" or shape_of(right)[-2] == "T":
                raise UntraceableError("a product over the token axis")
        if node.target is aten.reshape.default:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            if _before(shape_of(source)) != _before(shape_of(node)):
                raise UntraceableError("a reshape that mixes tokens with other axes")


def _check_dimension(node: fx.Node) -> None:
    """The op works along its dimension: it must be another than that of the tokens."""
    source, dims = node.args[0], node.args[DIMENSION[node.target]]
    assert isinstance(source, fx.Node)
    along = {dim for dim in (dims if isinstance(dims, list | tuple) else [dims]) if isinstance(dim, int)}
    if any(shape_of(source)[dim] == "T" for dim in along):
        raise UntraceableError(f"{node.target} along the tokens")


def _over_tokens(node: fx.Node) -> bool:
    x, index = node.args[0], node.args[3]
    return shape_of(x)[0] != "T" or shape_of(index)[0] != "T"


def _before(shape: tuple[int | str, ...]) -> int:
    """Elements before the token axis: equal on both sides, the axis itself is untouched."""
    count = 1
    for dim in shape[: shape.index("T")]:
        assert isinstance(dim, int)
        count *= dim
    return count
