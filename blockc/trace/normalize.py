"""Passes that bring a captured graph into normal form. Each is a function on the graph, in place.

In: ATen as torch.export leaves it. Out: only ops of `blockc.ir.ops`, arguments positional and complete, shapes
explicit, one value per op. The order in :func:`normalize` matters and is the documentation.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from blockc.trace.attention import UntraceableError

aten = torch.ops.aten

# Normal-form ops of ours stand in the graph as these functions; only their identity matters.
Target = Callable[..., Any]

# fx types the arguments of a node as a union of everything possible; a pass knows what it has matched.
Node = Any


def linear(x: Any, weight: Any, bias: Any, site: str, transposed: bool) -> Any:
    """``blockc.linear``; ``transposed`` says that the model keeps the weight ``[in, out]``."""
    raise AssertionError("normal-form ops are never run")


def embedding(ids: Any, weight: Any, site: str) -> Any:
    """``blockc.embedding``."""
    raise AssertionError("normal-form ops are never run")


def rms_norm(x: Any, weight: Any, eps: float) -> Any:
    """``blockc.rms_norm``."""
    raise AssertionError("normal-form ops are never run")


def normalize(graph: fx.Graph) -> None:
    """Run all passes, then remove what nothing uses."""
    for run in (
        drop_checks,
        canonical_casts,
        drop_identities,
        explicit_shapes,
        split_to_slices,
        fuse_linear,
        fuse_embedding,
        fuse_rms_norm,
        drop_identities,
        merge_equal,
    ):
        run(graph)
        graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.lint()


def shape_of(node: Node) -> tuple[int | str, ...]:
    """The node's shape with ``"T"`` for the token dimension. Refuses sizes that are expressions of T."""
    dims: list[int | str] = []
    for dim in node.meta["val"].shape:
        if isinstance(dim, int):
            dims.append(dim)
        elif dim.node.expr.is_Symbol:
            dims.append("T")
        else:
            raise UntraceableError(f"a value of size {dim} (an expression of the token count)")
    if dims.count("T") > 1:
        raise UntraceableError("a value that pairs tokens with tokens outside attention")
    return tuple(dims)


def dtype_of(node: Node) -> torch.dtype:
    """The node's dtype."""
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


def drop_checks(graph: fx.Graph) -> None:
    """Metadata assertions hold by construction; dropout, aliases and copies do nothing in inference."""
    for node in _calls(graph, aten._assert_tensor_metadata.default):
        graph.erase_node(node)
    for node in _calls(graph, aten.alias.default, aten.detach.default, aten.clone.default, aten.contiguous.default):
        _replace(node, node.args[0])
    for node in _calls(graph, aten.dropout.default):
        if node.args[2]:
            raise UntraceableError("dropout in inference")
        _replace(node, node.args[0])


def canonical_casts(graph: fx.Graph) -> None:
    """Every form of ``to`` becomes ``aten.to.dtype(x, dtype)``, or nothing where the dtype stays."""
    forms = (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten._to_copy.default, aten.to.other)
    for node in _calls(graph, *forms):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if dtype_of(node) == dtype_of(source):
            _replace(node, source)
        else:
            node.target, node.args, node.kwargs = aten.to.dtype, (source, dtype_of(node)), {}


def drop_identities(graph: fx.Graph) -> None:
    """Reshapes and expands to the shape that is there already, and slices of everything."""
    for node in _calls(graph, aten.view.default, aten.reshape.default, aten.expand.default, aten.slice.Tensor):
        source = node.args[0]
        if isinstance(source, fx.Node) and _known_shape(node) == _known_shape(source):
            _replace(node, source)


def explicit_shapes(graph: fx.Graph) -> None:
    """Write sizes out: ``-1`` and end-of-axis become what they are; all dimensions count from the front."""
    for node in _calls(
        graph, aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints
    ):
        node.target, node.args, node.kwargs = aten.reshape.default, (node.args[0], list(shape_of(node))), {}
    for node in _calls(graph, aten.expand.default):
        node.args, node.kwargs = (node.args[0], list(shape_of(node))), {}
    for node in _calls(graph, aten.slice.Tensor):
        _explicit_slice(node)
    for node in _calls(graph, aten.transpose.int):
        rank = len(node.meta["val"].shape)
        first, second = sorted(_dim(arg, rank) for arg in node.args[1:3])
        node.args = (node.args[0], first, second)
    for node in _calls(graph, aten.unsqueeze.default):
        node.args = (node.args[0], _dim(node.args[1], len(node.meta["val"].shape)))
    for node in _calls(graph, aten.cat.default):
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        position = _dim(dim, len(node.meta["val"].shape))
        if shape_of(node)[position] == "T":
            raise UntraceableError("tokens are concatenated")
        node.args, node.kwargs = (list(node.args[0]), position), {}
    for node in _calls(graph, aten.layer_norm.default):
        node.args = (*node.args[:4], node.args[4] if len(node.args) > 4 else 1e-5)
    for node in _calls(graph, aten.gelu.default):
        node.args, node.kwargs = (node.args[0], node.kwargs.get("approximate", "none")), {}
    for node in _calls(graph, aten.add.Tensor, aten.sub.Tensor):
        if node.kwargs.get("alpha", 1) != 1:
            raise UntraceableError("a scaled addition")
        node.kwargs = {}


def split_to_slices(graph: fx.Graph) -> None:
    """``split``/``chunk`` and the items taken of them become slices: one value per op."""
    for node in _calls(graph, operator.getitem):
        source, index = node.args
        assert isinstance(source, fx.Node)
        assert isinstance(index, int)
        if source.target not in (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default):
            raise UntraceableError(f"an op with several results ({source.target})")
        dim = source.args[2] if len(source.args) > 2 else source.kwargs.get("dim", 0)
        position = _dim(dim, len(node.meta["val"].shape))
        sizes = [value.shape[position] for value in source.meta["val"]]
        if not all(isinstance(size, int) for size in sizes):
            raise UntraceableError("tokens are split apart")
        start = sum(sizes[:index])
        node.target = aten.slice.Tensor
        node.args = (source.args[0], position, start, start + sizes[index])


def fuse_linear(graph: fx.Graph) -> None:
    """``linear`` and ``addmm`` (Conv1D, with the reshapes around it) become `linear`."""
    for node in _calls(graph, aten.linear.default):
        x, weight, *rest = node.args
        bias = rest[0] if rest else node.kwargs.get("bias")
        node.args, node.kwargs = (x, weight, bias, _module_path(node), False), {}
        node.target = linear
    for node in _calls(graph, aten.addmm.default):
        bias, x, weight = node.args
        assert isinstance(x, fx.Node)
        assert isinstance(weight, fx.Node)
        if weight.op != "placeholder" or node.kwargs:
            raise UntraceableError("a product of two computed matrices outside attention")
        node.target, node.args = linear, (x, weight, bias, _module_path(node), True)
        _lift_reshape(node)


def fuse_embedding(graph: fx.Graph) -> None:
    """``embedding(weight, ids)`` becomes `embedding`."""
    for node in _calls(graph, aten.embedding.default):
        weight, ids = node.args[:2]
        node.target, node.args, node.kwargs = embedding, (ids, weight, _module_path(node)), {}


def fuse_rms_norm(graph: fx.Graph) -> None:
    """``w * (x.f32 * rsqrt(mean(x.f32^2) + eps)).cast`` becomes `rms_norm` (arXiv 1910.07467).

    The order of cast and weight is Llama's, Qwen's and Mistral's; other orders are other functions and are left.
    """
    for root in _calls(graph, aten.rsqrt.default):
        match = _match_rms_norm(root)
        if match is None:
            continue
        x, weight, eps, last = match
        with graph.inserting_before(last):
            fused = graph.call_function(rms_norm, (x, weight, eps))
        fused.meta = dict(last.meta)
        last.replace_all_uses_with(fused)


def merge_equal(graph: fx.Graph) -> None:
    """Values computed twice in the same way are one value: layers that each unsqueeze the same table share it."""
    seen: dict[Any, fx.Node] = {}
    for node in [node for node in graph.nodes if node.op == "call_function"]:
        key = (node.target, repr(node.args), repr(node.kwargs))
        if key in seen:
            _replace(node, seen[key])
        else:
            seen[key] = node


def _match_rms_norm(root: Node) -> tuple[Node, Node, float, Node] | None:
    add = root.args[0]
    if not _is(add, aten.add.Tensor) or not isinstance(add.args[1], float):
        return None
    mean = add.args[0]
    if not _is(mean, aten.mean.dim) or list(mean.args[1]) != [-1] or not mean.args[2]:
        return None
    power = mean.args[0]
    if not _is(power, aten.pow.Tensor_Scalar) or power.args[1] != 2:
        return None
    wide = power.args[0]
    scaled = _only_user(root)
    if scaled is None or not _is(scaled, aten.mul.Tensor) or set(scaled.args) != {wide, root}:
        return None
    x, narrow = wide, scaled
    if _is(wide, aten.to.dtype):
        x, cast = wide.args[0], _only_user(scaled)
        if cast is None or not _is(cast, aten.to.dtype) or dtype_of(cast) != dtype_of(x):
            return None
        narrow = cast
    last = _only_user(narrow)
    if last is None or not _is(last, aten.mul.Tensor):
        return None
    weight = last.args[0] if last.args[1] is narrow else last.args[1]
    if not isinstance(weight, fx.Node) or weight.op != "placeholder" or dtype_of(wide) != torch.float32:
        return None
    return x, weight, add.args[1], last


def _lift_reshape(node: Node) -> None:
    """``reshape(linear(reshape(x)))`` with only leading dimensions folded is ``linear(x)``."""
    folded: Node = node.args[0]
    users = list(node.users)
    if not _is(folded, aten.reshape.default):
        return
    x = folded.args[0]
    wanted = (*shape_of(x)[:-1], shape_of(node)[-1])
    if shape_of(x)[-1] != shape_of(folded)[-1]:
        return
    if all(_is(user, aten.reshape.default) and shape_of(user) == wanted for user in users):
        node.args = (x, *node.args[1:])
        node.meta = dict(node.meta) | {"val": users[0].meta["val"]}
        for user in users:
            user.replace_all_uses_with(node)


def _explicit_slice(node: Node) -> None:
    given: list[Any] = list(node.args)
    source, dim, start, end, step = given + [None, 0, 0, 2**63 - 1, 1][len(given) :]
    assert isinstance(source, fx.Node)
    shape = source.meta["val"].shape
    position = _dim(dim, len(shape))
    size = shape[position]
    if step != 1 or not isinstance(size, int) or not isinstance(start, int) or not isinstance(end, int):
        if _reaches_output(node):
            raise UntraceableError("a slice of the tokens")
        return
    first = start + size if start < 0 else start
    last = end + size if end < 0 else min(end, size)
    node.args, node.kwargs = (source, position, first, last), {}


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


def _module_path(node: Node) -> str:
    """The path of the module that called the op, as PEFT spells it."""
    stack = list(node.meta["nn_module_stack"].values())
    path: str = stack[-1][0]
    return path.removeprefix("L['self'].").removeprefix("model").removeprefix(".")


def _known_shape(node: Node) -> tuple[Any, ...]:
    return tuple(str(dim) for dim in node.meta["val"].shape)


def _dim(dim: Any, rank: int) -> int:
    assert isinstance(dim, int)
    return dim + rank if dim < 0 else dim


def _is(node: Any, *targets: Target) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _calls(graph: fx.Graph, *targets: Target) -> Iterator[Node]:
    return iter([node for node in graph.nodes if _is(node, *targets)])


def _replace(node: Node, value: Any) -> None:
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)
