"""Types of all values of a structure, from the types of its inputs.

In: a verified structure. Out: dtype and shape of each value, None where a shape does not follow (a size that mixes
the token count with something else). Used for sizes and for checking that blocks fit together, never for execution.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from blockc.ir.structure import Arg, Dim, DtypeArg, Op, Param, Structure, Symbol, Value, ValueType

Types = dict[str, ValueType | None]

_WIDTH = {"BOOL": 0, "U8": 1, "I32": 2, "I64": 3, "F16": 4, "BF16": 4, "F32": 5, "F64": 6}
_SAME = frozenset(
    f"aten.{name}"
    for name in (
        "abs.default",
        "bitwise_not.default",
        "clamp.default",
        "cos.default",
        "exp.default",
        "expm1.default",
        "floor.default",
        "full_like.default",
        "gelu.default",
        "layer_norm.default",
        "log.default",
        "log1p.default",
        "masked_fill.Scalar",
        "neg.default",
        "pow.Tensor_Scalar",
        "reciprocal.default",
        "relu.default",
        "rms_norm.default",
        "rsqrt.default",
        "rsub.Scalar",
        "scatter.src",
        "scatter.value",
        "sigmoid.default",
        "silu.default",
        "sin.default",
        "softmax.int",
        "softplus.default",
        "sqrt.default",
        "square.default",
        "tanh.default",
    )
) | {"blockc.rms_norm"}
_BINARY = frozenset(
    f"aten.{name}"
    for name in ("add.Tensor", "div.Tensor", "maximum.default", "minimum.default", "mul.Tensor", "sub.Tensor")
)
_FLOATING = frozenset(
    f"aten.{name}"
    for name in (
        "cos.default", "div.Tensor", "exp.default", "expm1.default", "log.default", "log1p.default",
        "reciprocal.default", "rsqrt.default", "sigmoid.default", "sin.default", "sqrt.default", "tanh.default",
    )
)  # fmt: skip
_COMPARISONS = frozenset(f"aten.{name}.Scalar" for name in ("eq", "ge", "gt", "le", "lt", "ne"))
_REDUCTIONS = frozenset({"aten.amax.default", "aten.mean.dim", "aten.sum.dim_IntList"})


def value_types(structure: Structure) -> Types:
    """Inputs, contexts and results of ops by name."""
    types: Types = dict(structure.inputs + structure.contexts)
    params = dict(structure.params)
    for op in structure.ops:
        types[op.result] = _result(op, types, params)
    return types


def _result(op: Op, types: Types, params: Mapping[str, ValueType]) -> ValueType | None:
    """The type that an op yields; operands of unknown type make it unknown."""
    operands = [_type(arg, types, params) for arg in op.args]
    x = operands[0] if operands else None
    if op.target in ("aten.cat.default", "aten.stack.default"):
        return _join(op.target, op.args, types, params)
    if x is None:
        return None
    if op.target in _SAME:
        return _promoted(x, op)
    if op.target in _BINARY:
        return _broadcast(_promoted(x, op), operands[1], isinstance(op.args[1], Value | Param))
    if op.target in _COMPARISONS or op.target == "aten.logical_not.default":
        return ValueType(dtype="BOOL", shape=x.shape)
    if op.target in _REDUCTIONS:
        return _reduced(x, op.args[1], keeps=op.args[2] is True)
    match op.target, op.args:
        case "aten.where.self", (_, yes, no):
            chosen = operands[1] if isinstance(yes, Value | Param) else operands[2]
            return None if chosen is None else _broadcast(chosen, operands[2], isinstance(no, Value | Param))
        case "aten.gather.default", _:
            return None if operands[2] is None else _shaped(x, operands[2].shape)
        case (("blockc.topk_values" | "blockc.topk_indices"), (_, int(k))):
            dtype = x.dtype if op.target == "blockc.topk_values" else "I64"
            return ValueType(dtype=dtype, shape=(*x.shape[:-1], k))
        case "blockc.expert_linear", _:
            weight, index = operands[1], operands[3]
            return None if weight is None or index is None else _shaped(x, (*index.shape, weight.shape[1]))
        case "aten.to.dtype", (_, DtypeArg(code)):
            return ValueType(dtype=code, shape=x.shape)
        case "blockc.linear", _:
            weight = operands[1]
            return None if weight is None else _shaped(x, (*x.shape[:-1], weight.shape[0]))
        case "blockc.embedding", _:
            table = operands[1]
            return None if table is None else _shaped(table, (*x.shape, *table.shape[1:]))
        case "blockc.pool", _:
            return _shaped(x, ("R", *x.shape[2:]))
        case (("blockc.attention" | "blockc.encode"), _):
            values = operands[2]
            if values is None or len(x.shape) != 4 or len(values.shape) != 4:
                return None
            return _shaped(x, (x.shape[0], x.shape[2], x.shape[1], values.shape[3]))
        case "blockc.select_rows", _:
            return _shaped(x, ("R" if dim == "T" else dim for dim in x.shape))
        case "aten.matmul.default", _:
            right = operands[1]
            return None if right is None or len(right.shape) < 2 else _shaped(x, (*x.shape[:-1], right.shape[-1]))
        case _:
            return _view(op, x)


def _promoted(x: ValueType, op: Op) -> ValueType:
    """Integers become float32 where an op divides them, takes a float, or has no integer form."""
    whole = x.dtype in ("BOOL", "U8", "I32", "I64")
    floats = op.target in _FLOATING or any(isinstance(arg, float) for arg in op.args)
    return ValueType(dtype="F32", shape=x.shape) if whole and floats else x


def _view(op: Op, x: ValueType) -> ValueType | None:
    """Ops that only look at their operand in another way."""
    match op.target, op.args:
        case "aten.transpose.int", (_, int(first), int(second)):
            shape = list(x.shape)
            if not all(-len(shape) <= dim < len(shape) for dim in (first, second)):
                return None
            shape[first], shape[second] = shape[second], shape[first]
            return _shaped(x, shape)
        case "aten.unsqueeze.default", (_, int(dim)):
            shape = list(x.shape)
            shape.insert(dim if dim >= 0 else len(shape) + 1 + dim, 1)
            return _shaped(x, shape)
        case "aten.permute.default", (_, tuple(dims)):
            order = [dim for dim in dims if isinstance(dim, int) and 0 <= dim < len(x.shape)]
            return _shaped(x, (x.shape[dim] for dim in order)) if len(order) == len(x.shape) else None
        case "aten.select.int", (_, int(dim), _):
            return _shaped(x, x.shape[:dim] + x.shape[dim + 1 :]) if 0 <= dim < len(x.shape) else None
        case "aten.slice.Tensor", (_, int(dim), int(start), int(end), *step):
            return _slice(x, dim, start, end, step[0] if step else 1)
        case (("aten.reshape.default" | "aten.expand.default"), (_, tuple(sizes))):
            return _sized(x, sizes, keeps=op.target == "aten.expand.default")
        case _:
            return None


def _slice(x: ValueType, dim: int, start: int, end: int, step: Arg) -> ValueType | None:
    if not -len(x.shape) <= dim < len(x.shape) or not isinstance(step, int) or step < 1:
        return None
    size = x.shape[dim]
    if not isinstance(size, int):
        return x if (start, end >= 2**62, step) == (0, True, 1) else None
    shape = list(x.shape)
    shape[dim] = len(range(size)[start:end:step])
    return _shaped(x, shape)


def _reduced(x: ValueType, dims: Arg, *, keeps: bool) -> ValueType | None:
    """Sums and the like over listed dimensions, which become 1 or go."""
    if not isinstance(dims, tuple) or not all(isinstance(dim, int) and 0 <= dim < len(x.shape) for dim in dims):
        return None
    if keeps:
        return _shaped(x, (1 if place in dims else size for place, size in enumerate(x.shape)))
    return _shaped(x, (size for place, size in enumerate(x.shape) if place not in dims))


def _sized(x: ValueType, sizes: tuple[Arg, ...], *, keeps: bool) -> ValueType | None:
    """``reshape`` and ``expand``: -1 is what is left over, or (``keeps``) the size as it was."""
    shape: list[Dim] = []
    for place, size in enumerate(sizes):
        if isinstance(size, Symbol):
            shape.append("T")
        elif size == -1 and keeps:
            kept = place - len(sizes) + len(x.shape)
            if kept < 0:
                return None
            shape.append(x.shape[kept])
        elif isinstance(size, int):
            shape.append(size)
        else:
            return None
    if -1 in shape:
        known, whole = _numbers(shape, skip=-1), _numbers(x.shape)
        if known is None or whole is None or known[1] != whole[1] or not known[0] or whole[0] % known[0]:
            return None
        shape[shape.index(-1)] = whole[0] // known[0]
    return _shaped(x, shape)


def _numbers(shape: tuple[Dim, ...] | list[Dim], *, skip: int | None = None) -> tuple[int, tuple[str, ...]] | None:
    """Product of the fixed sizes, and the symbolic ones."""
    product, symbols = 1, []
    for dim in shape:
        if isinstance(dim, str):
            symbols.append(dim)
        elif dim != skip:
            product *= dim
    return product, tuple(symbols)


def _join(target: str, args: tuple[Arg, ...], types: Types, params: Mapping[str, ValueType]) -> ValueType | None:
    """``cat`` along a dimension, ``stack`` along a new one."""
    items, dim = args[0], args[1]
    if not isinstance(items, tuple) or not isinstance(dim, int):
        return None
    parts = [part for item in items if (part := _type(item, types, params)) is not None]
    if len(parts) != len(items) or not parts:
        return None
    shape = list(parts[0].shape)
    if target == "aten.stack.default":
        shape.insert(dim, len(parts))
        return _shaped(parts[0], shape)
    sizes = [part.shape[dim] for part in parts if -len(part.shape) <= dim < len(part.shape)]
    fixed = [size for size in sizes if isinstance(size, int)]
    if len(fixed) != len(parts):
        return None
    shape[dim] = sum(fixed)
    return _shaped(parts[0], shape)


def _broadcast(x: ValueType, other: ValueType | None, is_tensor: bool) -> ValueType | None:
    if not is_tensor:
        return x
    if other is None:
        return None
    long, short = (x, other) if len(x.shape) >= len(other.shape) else (other, x)
    shape = list(long.shape)
    for place in range(1, len(short.shape) + 1):
        if shape[-place] == 1:
            shape[-place] = short.shape[-place]
        elif short.shape[-place] not in (1, shape[-place]):
            return None
    wide = max(x.dtype, other.dtype, key=lambda code: _WIDTH[code])
    if {x.dtype, other.dtype} == {"F16", "BF16"}:
        wide = "F32"
    return ValueType(dtype=wide, shape=tuple(shape))


def _type(arg: Arg, types: Types, params: Mapping[str, ValueType]) -> ValueType | None:
    match arg:
        case Value(name):
            return types.get(name)
        case Param(name):
            return params.get(name)
        case _:
            return None


def _shaped(like: ValueType, shape: Iterable[Dim]) -> ValueType:
    return ValueType(dtype=like.dtype, shape=tuple(shape))
