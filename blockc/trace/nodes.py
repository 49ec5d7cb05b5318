"""What passes over a captured graph share: how to find nodes, read their types, and put others in their place.

Normal-form ops of ours that torch does not know stand in the graph as functions of this module; only their identity
matters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from blockc.trace.attention import UntraceableError

aten = torch.ops.aten

Target = Callable[..., Any]

# fx types the arguments of a node as a union of everything possible; a pass knows what it has matched.
Node = Any


def linear(x: Any, weight: Any, bias: Any, site: str | None, transposed: bool) -> Any:
    """``blockc.linear``; ``transposed`` says that the model keeps the weight ``[in, out]``."""
    raise AssertionError("normal-form ops are never run")


def embedding(ids: Any, weight: Any, site: str) -> Any:
    """``blockc.embedding``."""
    raise AssertionError("normal-form ops are never run")


def rms_norm(x: Any, weight: Any, eps: float) -> Any:
    """``blockc.rms_norm``."""
    raise AssertionError("normal-form ops are never run")


def topk_values(x: Any, k: int) -> Any:
    """``blockc.topk_values``."""
    raise AssertionError("normal-form ops are never run")


def topk_indices(x: Any, k: int) -> Any:
    """``blockc.topk_indices``."""
    raise AssertionError("normal-form ops are never run")


def pool(x: Any, mode: str) -> Any:
    """``blockc.pool``."""
    raise AssertionError("normal-form ops are never run")


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


def rank_of(node: Node) -> int:
    """How many dimensions the node's value has."""
    return len(node.meta["val"].shape)


def from_front(dim: Any, rank: int) -> int:
    """A dimension counted from the front."""
    assert isinstance(dim, int)
    return dim + rank if dim < 0 else dim


def is_call(node: Any, *targets: Target) -> bool:
    """Whether the node calls one of these."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def calls(graph: fx.Graph, *targets: Target) -> list[Node]:
    """All nodes that call one of these; the graph may be changed while they are walked."""
    return [node for node in graph.nodes if is_call(node, *targets)]


def only_user(node: Node) -> Node | None:
    """The node's user if it has exactly one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def arguments(node: Node, *defaults: Any) -> list[Any]:
    """The node's positional arguments, filled up with the schema's keyword arguments or ``defaults``.

    ``defaults`` belong to the last positions of the schema.
    """
    schema = node.target._schema.arguments
    given: list[Any] = list(node.args)
    first_default = len(schema) - len(defaults)
    for place in range(len(given), len(schema)):
        name = schema[place].name
        if name in node.kwargs:
            given.append(node.kwargs[name])
        elif place >= first_default and defaults:
            given.append(defaults[place - first_default])
        else:
            given.append(schema[place].default_value)
    return given


def insert_before(node: Node, target: Any, *args: Any) -> Node:
    """A new call before ``node``; its type is what the op yields for the types of its arguments."""
    with node.graph.inserting_before(node):
        made = node.graph.call_function(target, args)
    made.meta = dict(node.meta) | {"val": target(*fx.map_arg(args, lambda argument: argument.meta["val"]))}
    return made


def replace(node: Node, value: Any) -> None:
    """Put ``value`` in the node's place and remove it."""
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)


def module_path(node: Node) -> str:
    """The path of the module that called the op, as PEFT spells it."""
    path: str = _innermost(node)[0]
    return path.removeprefix("L['self'].").removeprefix("model").removeprefix(".")


def module_type(node: Node) -> str:
    """The qualified name of the class of the module that called the op."""
    kind = _innermost(node)[1]
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def _innermost(node: Node) -> Any:
    return list(node.meta["nn_module_stack"].values())[-1]
