"""Bring a captured graph into normal form: passes, each a function on the graph, in place.

In: ATen as torch.export leaves it. Out: only ops of `blockc.ir.ops`, arguments positional and complete, shapes
explicit, one value per op. The order in :func:`normalize` matters and is the documentation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from blockc.trace.attention import UntraceableError
from blockc.trace.functional import functional
from blockc.trace.fuse import fuse_embedding, fuse_linear, fuse_rms_norm
from blockc.trace.model import TOKENS, Head
from blockc.trace.nodes import aten, calls, dtype_of, insert_before, replace
from blockc.trace.pool import last_rows, pool_tokens
from blockc.trace.shapes import explicit_shapes, one_value_per_op


def normalize(graph: fx.Graph, head: Head = TOKENS) -> None:
    """Run all passes, then remove what nothing uses."""
    for run in (
        functional,
        drop_checks,
        canonical_casts,
        drop_identities,
        one_value_per_op,
        explicit_shapes,
        *((pool_tokens,) if head.reads_whole_texts and head.kind != "token_classification" else ()),
        *((last_rows,) if head.causal else ()),
        fuse_linear,
        fuse_embedding,
        fuse_rms_norm,
        drop_identities,
        merge_equal,
    ):
        run(graph)
        graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    for node in graph.nodes:
        if node.op == "call_function" and not isinstance(node.meta["val"], torch.Tensor):
            raise UntraceableError("a value that depends on the number of tokens in a step")
    graph.lint()


def drop_checks(graph: fx.Graph) -> None:
    """Metadata assertions hold by construction; dropout, aliases and copies do nothing in inference."""
    for node in calls(graph, aten._assert_tensor_metadata.default):
        graph.erase_node(node)
    for node in calls(graph, aten.alias.default, aten.detach.default, aten.contiguous.default):
        replace(node, node.args[0])
    for node in calls(graph, aten.dropout.default, aten.feature_dropout.default):
        if node.args[2]:
            raise UntraceableError("dropout in inference")
        replace(node, node.args[0])


def canonical_casts(graph: fx.Graph) -> None:
    """Every form of ``to`` becomes ``aten.to.dtype(x, dtype)``, or nothing where the dtype stays.

    Sums and softmaxes that cast their operand first do so as an op of its own.
    """
    for node in calls(graph, aten.clone.default):
        replace(node, node.args[0])
    forms = (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten._to_copy.default, aten.to.other)
    for node in calls(graph, *forms, aten.type_as.default):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if dtype_of(node) == dtype_of(source):
            replace(node, source)
        else:
            node.target, node.args, node.kwargs = aten.to.dtype, (source, dtype_of(node)), {}
    for node in calls(graph, aten.softmax.int, aten.sum.dim_IntList, aten.mean.dim):
        _cast_first(node)


def _cast_first(node: Any) -> None:
    """``softmax(x, dim, dtype)`` is ``softmax(x.to(dtype), dim)``, with no dtype left in the call."""
    source = node.args[0]
    dtype = node.args[2] if node.target is aten.softmax.int and len(node.args) > 2 else node.kwargs.get("dtype")
    node.kwargs = {key: value for key, value in node.kwargs.items() if key != "dtype"}
    if node.target is aten.softmax.int:
        node.args = node.args[:2]
    if dtype is None or dtype == dtype_of(source):
        return
    node.args = (insert_before(node, aten.to.dtype, source, dtype), *node.args[1:])


def drop_identities(graph: fx.Graph) -> None:
    """Reshapes and expands to the shape that is there already, and slices of everything."""
    views = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
    for node in calls(graph, *views, aten.expand.default, aten.slice.Tensor):
        source = node.args[0]
        if isinstance(source, fx.Node) and _known_shape(node) == _known_shape(source):
            replace(node, source)


def merge_equal(graph: fx.Graph) -> None:
    """Values computed twice in the same way are one value: layers that each unsqueeze the same table share it."""
    seen: dict[Any, fx.Node] = {}
    for node in [node for node in graph.nodes if node.op == "call_function"]:
        key = (node.target, repr(node.args), repr(node.kwargs))
        if key in seen:
            replace(node, seen[key])
        else:
            seen[key] = node


def _known_shape(node: Any) -> tuple[Any, ...]:
    return tuple(str(dim) for dim in node.meta["val"].shape)
