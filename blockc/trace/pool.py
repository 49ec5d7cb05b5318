"""Reductions over the tokens of a text become an op of ours, which knows where each text of a step begins and ends.

Only models that yield one vector for a text have them, between the last layer and the head. Those that read from left
to right need none: the vector of a text is that of its last token.
"""

from __future__ import annotations

from torch import fx

from blockc.trace import nodes
from blockc.trace.nodes import Node, aten, calls, is_call, replace, shape_of

_MODES = {aten.mean.dim: "mean", aten.sum.dim_IntList: "sum"}


def pool_tokens(graph: fx.Graph) -> None:
    """The first or last token, the mean or the sum of all. What is left of the token axis is the axis of the texts."""
    for node in calls(graph, aten.select.int):
        source, dim, index = node.args
        if shape_of(source)[dim] == "T" and index in (0, -1):
            _pool(node, source, "last" if index else "first")
    for node in calls(graph, *_MODES):
        source, dims, keeps = node.args
        if [shape_of(source)[dim] for dim in dims] == ["T"] and not keeps:
            _pool(node, source, _MODES[node.target])


def _pool(node: Node, source: Node, mode: str) -> None:
    node.target, node.args = nodes.pool, (source, mode)


def last_rows(graph: fx.Graph) -> None:
    """Scores at a text's last token become scores of every token: whoever runs a step selects the rows that it wants.

    Of one text, transformers takes ``scores[arange(1), -1]``.
    """
    for node in calls(graph, aten.index.Tensor):
        last, places = node.args
        if not is_call(last, aten.select.int) or len(places) != 1 or not is_call(places[0], aten.arange.default):
            continue
        source, dim, index = last.args
        if shape_of(source)[dim] == "T" and index == -1 and shape_of(places[0]) == (1,):
            replace(node, source)
