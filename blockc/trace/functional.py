"""Ops that change a value in place become ops that yield a new one.

``a.div_(b)`` is ``a' = a / b`` with ``a'`` in the place of ``a`` from there on. That holds where nothing looks at the
same memory under another name; where something might, the model is refused.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from blockc.trace.attention import UntraceableError
from blockc.trace.nodes import (
    Node,
    arguments,
    aten,
    calls,
    dtype_of,
    from_front,
    insert_before,
    is_call,
    only_user,
    rank_of,
)


def functional(graph: fx.Graph) -> None:
    """Rewrite every op in place. Raises :class:`UntraceableError` where an alias would see the difference."""
    for node in calls(graph, aten.new_empty.default, aten.empty.memory_format, aten.empty_like.default):
        _join_copies(node)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output") or _changes(node))
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if not _changes(node):
            continue
        changed = node.args[0]
        twin = _twin(node.target)
        if twin is None or not isinstance(changed, fx.Node) or _aliased(changed, node, order):
            raise UntraceableError(f"a value that is changed in place ({node.target})")
        node.target = twin
        for user in list(changed.users):
            if user is not node and order[user] > order[node]:
                user.replace_input_with(changed, node)


def _changes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _join_copies(empty: Node) -> None:
    """An empty tensor whose slices are copied into, one behind the other along an axis, is those values joined."""
    order = {node: index for index, node in enumerate(empty.graph.nodes)}
    pieces: list[tuple[int, int, Node, Node]] = []
    dims: set[int] = set()
    for part in [user for user in empty.users if is_call(user, aten.slice.Tensor)]:
        copy = only_user(part)
        if copy is None or not is_call(copy, aten.copy_.default) or copy.args[0] is not part or copy.users:
            continue
        _, dim, start, end, step = arguments(part)
        position = from_front(dim, rank_of(empty))
        size = empty.meta["val"].shape[position]
        if step == 1 and isinstance(size, int):
            first, last, _ = slice(start, end).indices(size)
            dims.add(position)
            pieces.append((first, last, part, copy))
    pieces.sort(key=lambda piece: piece[:2])
    bounds = [0, *(last for _, last, _, _ in pieces)]
    others = [user for user in empty.users if user not in [part for _, _, part, _ in pieces]]
    if len(dims) != 1 or not others or [first for first, _, _, _ in pieces] != bounds[:-1]:
        return
    dim = dims.pop()
    last_copy = max(order[copy] for _, _, _, copy in pieces)
    if bounds[-1] != empty.meta["val"].shape[dim] or min(order[user] for user in others) < last_copy:
        return
    reader = min(others, key=lambda user: order[user])
    values = [_like(reader, copy.args[1], part) for _, _, part, copy in pieces]
    joined = insert_before(reader, aten.cat.default, values, dim)
    for _, _, _, copy in pieces:
        empty.graph.erase_node(copy)
    for user in others:
        user.replace_input_with(empty, joined)


def _like(before: Node, value: Node, place: Node) -> Node:
    """The value in the shape and dtype of the place that it is copied into."""
    if dtype_of(value) != dtype_of(place):
        value = insert_before(before, aten.to.dtype, value, dtype_of(place))
    have, wanted = value.meta["val"].shape, place.meta["val"].shape
    if have != wanted:
        sizes = [-1 if own == size else size for own, size in zip(have, wanted, strict=True)]
        value = insert_before(before, aten.expand.default, value, sizes)
    return value


def _twin(target: Any) -> Any:
    """The op of the same name that yields a new value."""
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    return getattr(packet, target._overloadname, None) if packet is not None else None


def _aliased(value: fx.Node, changer: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether the value's memory has another name that is read after it was changed."""
    if value.op != "call_function" or _is_view(value):
        return True
    waiting, seen = [user for user in value.users if _is_view(user)], set()
    while waiting:
        view = waiting.pop()
        if view in seen:
            continue
        seen.add(view)
        if any(order[user] > order[changer] for user in view.users) and order[view] < order[changer]:
            return True
        waiting += [user for user in view.users if _is_view(user)]
    return False


def _is_view(node: fx.Node) -> bool:
    """Whether the op's result may share memory with its operand; items of several results do if those do."""
    target = node.args[0].target if node.target is operator.getitem else node.target  # type: ignore[union-attr]
    if not isinstance(target, torch._ops.OpOverload):
        return True
    return any(argument.alias_info is not None for argument in target._schema.arguments)
