"""Groups of ATen ops that are one op of ours: linears, table look-ups, root mean square norms."""

from __future__ import annotations

import torch
from torch import fx

from blockc.trace import nodes
from blockc.trace.attention import UntraceableError
from blockc.trace.nodes import Node, aten, calls, dtype_of, is_call, module_path, module_type, only_user, shape_of

# Modules that PEFT wraps: only at these may an adapter act. A router's matrix is a parameter of a module of its own.
_WRAPPED = ("Linear", "Conv1D")


def fuse_linear(graph: fx.Graph) -> None:
    """``linear`` and ``addmm`` (Conv1D, with the reshapes around it) become `linear`."""
    for node in calls(graph, aten.linear.default):
        x, weight, *rest = node.args
        bias = rest[0] if rest else node.kwargs.get("bias")
        if not isinstance(weight, fx.Node) or weight.op != "placeholder":
            _as_product(node, x, weight, bias)
            continue
        node.args, node.kwargs = (x, weight, bias, _site(node, x), False), {}
        node.target = nodes.linear
    for node in calls(graph, aten.addmm.default):
        bias, x, weight = node.args
        assert isinstance(x, fx.Node)
        assert isinstance(weight, fx.Node)
        if weight.op != "placeholder" or node.kwargs:
            raise UntraceableError("a product of two computed matrices outside attention")
        node.target, node.args = nodes.linear, (x, weight, bias, _site(node, x), True)
        _lift_reshape(node)


def fuse_embedding(graph: fx.Graph) -> None:
    """``embedding(weight, ids)`` becomes `embedding`."""
    for node in calls(graph, aten.embedding.default):
        weight, ids = node.args[:2]
        node.target, node.args, node.kwargs = nodes.embedding, (ids, weight, module_path(node)), {}


def fuse_rms_norm(graph: fx.Graph) -> None:
    """``w * (x.f32 * rsqrt(mean(x.f32^2) + eps)).cast`` becomes `rms_norm` (arXiv 1910.07467).

    The order of cast and weight is Llama's, Qwen's and Mistral's; other orders are other functions and are left.
    """
    for root in calls(graph, aten.rsqrt.default):
        match = _match_rms_norm(root)
        if match is None:
            continue
        x, weight, eps, last = match
        with graph.inserting_before(last):
            fused = graph.call_function(nodes.rms_norm, (x, weight, eps))
        fused.meta = dict(last.meta)
        last.replace_all_uses_with(fused)


def _site(node: Node, x: Node) -> str | None:
    """The module's path if PEFT would wrap it and it works on one row for each token or text."""
    if not module_type(node).endswith(_WRAPPED) or shape_of(x)[:-1] not in ((1, "T"), ("T",), (1,)):
        return None
    return module_path(node)


def _as_product(node: Node, x: Node, weight: Node, bias: Node) -> None:
    """A linear whose matrix is computed (a normalised or scaled parameter): ``x W^T``, plus the bias."""
    raise UntraceableError("a linear whose matrix is computed")


def _match_rms_norm(root: Node) -> tuple[Node, Node, float, Node] | None:
    add = root.args[0]
    if not is_call(add, aten.add.Tensor) or not isinstance(add.args[1], float):
        return None
    mean = add.args[0]
    if not is_call(mean, aten.mean.dim) or list(mean.args[1]) != [len(shape_of(mean)) - 1] or not mean.args[2]:
        return None
    power = mean.args[0]
    squares = is_call(power, aten.square.default) or (is_call(power, aten.pow.Tensor_Scalar) and power.args[1] == 2)
    if not squares:
        return None
    wide = power.args[0]
    scaled = only_user(root)
    if scaled is None or not is_call(scaled, aten.mul.Tensor) or set(scaled.args) != {wide, root}:
        return None
    x, narrow = wide, scaled
    if is_call(wide, aten.to.dtype):
        x, cast = wide.args[0], only_user(scaled)
        if cast is None or not is_call(cast, aten.to.dtype) or dtype_of(cast) != dtype_of(x):
            return None
        narrow = cast
    last = only_user(narrow)
    if last is None or not is_call(last, aten.mul.Tensor):
        return None
    weight = last.args[0] if last.args[1] is narrow else last.args[1]
    if not isinstance(weight, fx.Node) or weight.op != "placeholder" or dtype_of(wide) != torch.float32:
        return None
    if shape_of(weight) != shape_of(x)[-1:]:
        return None
    return x, weight, add.args[1], last


def _lift_reshape(node: Node) -> None:
    """``reshape(linear(reshape(x)))`` with only leading dimensions folded is ``linear(x)``."""
    folded: Node = node.args[0]
    users = list(node.users)
    if not is_call(folded, aten.reshape.default):
        return
    x = folded.args[0]
    wanted = (*shape_of(x)[:-1], shape_of(node)[-1])
    if shape_of(x)[-1] != shape_of(folded)[-1]:
        return
    if all(is_call(user, aten.reshape.default) and shape_of(user) == wanted for user in users):
        node.args = (x, *node.args[1:])
        node.meta = dict(node.meta) | {"val": users[0].meta["val"]}
        for user in users:
            user.replace_all_uses_with(node)
