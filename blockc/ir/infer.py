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
        "cos.default",
        "gelu.default",
        "layer_norm.default",
        "neg.default",
        "pow.Tensor_Scalar",
        "relu.default",
        "silu.default",
        "sin.default",
        "tanh.default",
    )
) | {"blockc.rms_norm"}


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
    if op.target == "aten.cat.default":
        return _cat(op.args, types, params)
    if x is None:
        return None
    if op.target in _SAME:
        return x
    match op.target, op.args:
        case (("aten.add.Tensor" | "aten.mul.Tensor" | "aten.sub.Tensor"), (_, other)):
            return _broadcast(x, operands[1], isinstance(other, Value | Param))
        case "aten.to.dtype", (_, DtypeArg(code)):
            return ValueType(dtype=code, shape=x.shape)
        case "blockc.linear", _:
            weight = operands[1]
            return None if weight is None else _shaped(x, (*x.shape[:-1], weight.shape[0]))
        case "blockc.embedding", _:
            table = operands[1]
            return None if table is None else _shaped(table, (*x.shape, *table.shape[1:]))
        case "blockc.attention", _:
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
        case "aten.slice.Tensor", (_, int(dim), int(start), int(end)):
            return _slice(x, dim, start, end)
        case (("aten.reshape.default" | "aten.expand.default"), (_, tuple(sizes))):
            return _sized(x, sizes, keeps=op.target == "aten.expand.default")
        case _:
            return None


def _slice(x: ValueType, dim: int, start: int, end: int) -> ValueType | None:
    if not -len(x.shape) <= dim < len(x.shape):
        return None
    size = x.shape[dim]
    if not isinstance(size, int):
        return x if (start, end >= 2**62) == (0, True) else None
    shape = list(x.shape)
    shape[dim] = len(range(size)[start:end])
    return _shaped(x, shape)


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


def _cat(args: tuple[Arg, ...], types: Types, params: Mapping[str, ValueType]) -> ValueType | None:
    items, dim = args[0], args[1]
    if not isinstance(items, tuple) or not isinstance(dim, int):
        return None
    parts = [_type(item, types, params) for item in items]
    sizes = [part.shape[dim] for part in parts if part is not None and -len(part.shape) <= dim < len(part.shape)]
    if len(sizes) != len(parts) or not parts or parts[0] is None:
        return None
    shape = list(parts[0].shape)
    total = 0
    for size in sizes:
        if not isinstance(size, int):
            return None
        total += size
    shape[dim] = total
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
