"""Shapes written out: sizes instead of ``-1``, dimensions counted from the front, one value per op.

Every op that takes a dimension is listed here with the place of that argument, which is also what
`independence.py` goes by.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from blockc.ir.ops import OPS
from blockc.trace import nodes
from blockc.trace.attention import UntraceableError
from blockc.trace.nodes import Node, arguments, aten, calls, from_front, insert_before, rank_of, replace, shape_of

# Op -> place of its dimension. Lists of dimensions count as well.
DIMENSION: dict[Any, int] = {
    aten.amax.default: 1,
    aten.cumsum.default: 1,
    aten.gather.default: 1,
    aten.mean.dim: 1,
    aten.scatter.src: 1,
    aten.scatter.value: 1,
    aten.select.int: 1,
    aten.slice.Tensor: 1,
    aten.softmax.int: 1,
    aten.sum.dim_IntList: 1,
}
_RESHAPES = (
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
    aten.unflatten.int, aten.squeeze.dim, aten.squeeze.default, aten.squeeze.dims, aten.view_as.default,
)  # fmt: skip
_WITH_DEFAULTS = (aten.clamp.default, aten.layer_norm.default, aten.rms_norm.default, aten.softplus.default)
_SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
_END = 2**63 - 1


def one_value_per_op(graph: fx.Graph) -> None:
    """Items of ``split`` and ``chunk`` become slices, of ``unbind`` selections, of ``topk`` ops of their own."""
    for node in calls(graph, operator.getitem):
        source, index = node.args
        assert isinstance(source, fx.Node)
        assert isinstance(index, int)
        if source.target in _SPLITS:
            _slice_of_split(node, source, index)
        elif source.target is aten.unbind.int:
            value, dim = arguments(source)
            node.target, node.args = aten.select.int, (value, from_front(dim, rank_of(value)), index)
        elif source.target is aten.topk.default:
            _item_of_topk(node, source, index)
        else:
            raise UntraceableError(f"an op with several results ({source.target})")


def _slice_of_split(node: Node, source: Node, index: int) -> None:
    dim = source.args[2] if len(source.args) > 2 else source.kwargs.get("dim", 0)
    position = from_front(dim, rank_of(node))
    sizes = [value.shape[position] for value in source.meta["val"]]
    if not all(isinstance(size, int) for size in sizes):
        raise UntraceableError("tokens are split apart")
    start = sum(sizes[:index])
    node.target, node.args = aten.slice.Tensor, (source.args[0], position, start, start + sizes[index])


def _item_of_topk(node: Node, source: Node, index: int) -> None:
    """Which of equal values wins, and in which order they stand, is torch's own choice in the runtime as well."""
    value, k, dim, largest, _ = arguments(source)
    if from_front(dim, rank_of(value)) != rank_of(value) - 1 or not largest:
        raise UntraceableError("a choice of the smallest values, or along another axis than the last")
    node.target, node.args = (nodes.topk_values, nodes.topk_indices)[index], (value, k)


def explicit_shapes(graph: fx.Graph) -> None:
    """Write everything out. The order of the steps does not matter."""
    for node in calls(graph, aten.repeat_interleave.self_int):
        value, repeats, dim = arguments(node)[:3]
        _repeat(node, value, repeats, from_front(dim, rank_of(value)), each=True)
    for node in calls(graph, aten.repeat.default):
        value, times = node.args
        repeated = [dim for dim, count in enumerate(times) if count != 1]
        if len(repeated) > 1 or len(times) != rank_of(value):
            raise UntraceableError("a value that is repeated along several axes")
        if repeated:
            _repeat(node, value, times[repeated[0]], repeated[0], each=False)
        else:
            replace(node, value)
    for node in calls(graph, *_RESHAPES):
        node.target, node.args, node.kwargs = aten.reshape.default, (node.args[0], list(shape_of(node))), {}
    for node in calls(graph, aten.expand.default, aten.expand_as.default):
        node.target, node.args, node.kwargs = aten.expand.default, (node.args[0], list(shape_of(node))), {}
    for node in calls(graph, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default):
        _constant_like(node)
    for node in calls(graph, *DIMENSION):
        place = DIMENSION[node.target]
        given, rank = arguments(node), rank_of(node.args[0])
        dims = given[place]
        given[place] = (
            [from_front(dim, rank) for dim in dims] if isinstance(dims, list | tuple) else from_front(dims, rank)
        )
        # Arguments that can only be given by name stand at their defaults: `_refuse_keywords` sees to it.
        _refuse_keywords(node)
        node.args, node.kwargs = _as_many_as_taken(node, given), {}
    for node in calls(graph, aten.slice.Tensor):
        _explicit_slice(node)
    for node in calls(graph, aten.transpose.int):
        first, second = sorted(from_front(arg, rank_of(node)) for arg in node.args[1:3])
        node.args = (node.args[0], first, second)
    for node in calls(graph, aten.t.default):
        node.target, node.args = aten.transpose.int, (node.args[0], rank_of(node) - 2, rank_of(node) - 1)
    for node in calls(graph, aten.permute.default):
        node.args = (node.args[0], [from_front(dim, rank_of(node)) for dim in node.args[1]])
    for node in calls(graph, aten.unsqueeze.default):
        node.args = (node.args[0], from_front(node.args[1], rank_of(node)))
    for node in calls(graph, aten.cat.default, aten.stack.default, aten.concat.default):
        _explicit_join(node)
    for node in calls(graph, aten.gelu.default):
        node.args, node.kwargs = (node.args[0], node.kwargs.get("approximate", "none")), {}
    for other, plain in ((aten.min.other, aten.minimum.default), (aten.max.other, aten.maximum.default)):
        for node in calls(graph, other):
            node.target = plain
    for node in calls(graph, *_WITH_DEFAULTS):
        node.args, node.kwargs = _as_many_as_taken(node, arguments(node)), {}
    for node in calls(graph, aten.add.Tensor, aten.sub.Tensor, aten.rsub.Scalar):
        if node.kwargs.get("alpha", 1) != 1 or len(node.args) > 2:
            raise UntraceableError("a scaled addition")
        node.kwargs = {}


def _repeat(node: Node, value: Node, count: int, dim: int, *, each: bool) -> None:
    """A new axis, expanded, and folded into the one that it repeats: ``each`` element, or the axis as a whole."""
    place = dim + 1 if each else dim
    apart = insert_before(node, aten.unsqueeze.default, value, place)
    sizes = [count if position == place else -1 for position in range(rank_of(apart))]
    wide = insert_before(node, aten.expand.default, apart, sizes)
    node.target, node.args, node.kwargs = aten.reshape.default, (wide, list(shape_of(node))), {}


def _as_many_as_taken(node: Node, given: list[Any]) -> tuple[Any, ...]:
    """Without what an op of a structure has no place for: dtypes that are casts by now, hints to kernels."""
    spec = OPS.get(str(node.target))
    return tuple(given if spec is None else given[: spec.max_args])


def _refuse_keywords(node: Node) -> None:
    for argument in node.target._schema.arguments:
        if argument.kwarg_only and node.kwargs.get(argument.name, argument.default_value) != argument.default_value:
            raise UntraceableError(f"{node.target} with {argument.name}")


def _explicit_join(node: Node) -> None:
    items, dim = (*node.args, *node.kwargs.values(), 0)[:2]
    position = from_front(dim, rank_of(node))
    if shape_of(node)[position] == "T" or any(
        shape_of(item)[position] == "T" for item in items if node.target is not aten.stack.default
    ):
        raise UntraceableError("tokens are concatenated")
    target = aten.stack.default if node.target is aten.stack.default else aten.cat.default
    node.target, node.args, node.kwargs = target, (list(items), position), {}


def _constant_like(node: Node) -> None:
    """A tensor of one value, shaped like another: a scalar times zero would turn infinities into NaN, this does not."""
    value = {aten.zeros_like.default: 0, aten.ones_like.default: 1}.get(node.target)
    node.args = (node.args[0], node.args[1] if value is None else value)
    node.target, node.kwargs = aten.full_like.default, {}
    source = node.args[0]
    if node.meta["val"].dtype != source.meta["val"].dtype:
        raise UntraceableError("a constant of another dtype than what it is shaped like")


def _explicit_slice(node: Node) -> None:
    source, dim, start, end, step = node.args
    assert isinstance(source, fx.Node)
    size = source.meta["val"].shape[dim]
    start, end = 0 if start is None else start, _END if end is None else end
    if not isinstance(size, int) and (start, step) == (0, 1) and end == _END:
        replace(node, source)
        return
    if not all(isinstance(value, int) for value in (size, start, end, step)):
        if _reaches_output(node):
            raise UntraceableError("a slice of the tokens")
        return
    first = max(0, start + size) if start < 0 else min(start, size)
    last = max(0, end + size) if end < 0 else min(end, size)
    node.args = (source, dim, first, last) if step == 1 else (source, dim, first, last, step)


def _reaches_output(node: Node) -> bool:
    seen, stack = set(), [node]
    while stack:
        current = stack.pop()
        if current.op == "output":
            return True
        for user in current.users:
            if user not in seen:
                seen.add(user)
                stack.append(user)
    return False
