"""Where a program waits for kernels: before whatever reads what they have yet to write.

In: an fx graph of a structure, and the ops whose kernels may wait. Out: the same graph with calls of `settle`.
Invariant: no other op reads what such an op, or a program before this one, has yielded without a call between them.
"""

from __future__ import annotations

import operator

from torch import fx

from blockc_runtime.native.queue import settle
from blockc_runtime.ops.aten import aten_function
from blockc_runtime.ops.table import OpTable
from blockc_runtime.ops.vector.cpu import vector

_RESHAPE = aten_function("aten.reshape.default")


def settle_between(graph: fx.Graph, ops: OpTable) -> bool:
    """Change in place. Values of a program are settled by who has it run.

    Returns whether it calls kernels that wait and nothing else, for rows without terms at other sites than linears, and
    yields one sum.
    """
    if not ops.wait:
        return False
    unsettled: set[fx.Node] = set()
    others = 0
    for node in list(graph.nodes):
        if node.op == "placeholder" and str(node.target).startswith("value_"):
            unsettled.add(node)
        elif node.op != "call_function":
            continue
        elif node.target in ops.wait:
            unsettled.add(node)
        elif unsettled.isdisjoint(node.all_input_nodes):
            others += node.target is not vector
        elif _only_looks(node, ops):
            unsettled.add(node)
        else:
            with graph.inserting_before(node):
                graph.call_function(settle)
            unsettled.clear()
            others += 1
    (yielded,) = next(node for node in graph.nodes if node.op == "output").args
    return not others and isinstance(yielded, fx.Node) and yielded.target is ops.residual


def _only_looks(node: fx.Node, ops: OpTable) -> bool:
    """Whether it takes apart what an op has yielded, or gives it another shape, and reads nothing of it."""
    source = node.all_input_nodes[0]
    return (node.target is operator.getitem and source.target in ops.wait) or (
        node.target is _RESHAPE and source.target is ops.heads  # contiguous, so that nothing is copied
    )
