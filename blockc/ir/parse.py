"""Text -> ``Structure``, refusing everything that the whitelist of ops does not know.

The text may come from a plan that somebody edited: a malformed line raises :class:`StructureError` and nothing else.
"""

from __future__ import annotations

import re
from typing import Literal, cast

from blockc.ir.ops import OPS
from blockc.ir.structure import Arg, Bound, Dim, DtypeArg, Op, Param, Structure, Symbol, Value, ValueType
from blockc.ir.tensor import DTYPE_BYTES

_NAME = r"[A-Za-z0-9_.]+"
_TYPE = re.compile(r"([A-Z0-9]+)\[([A-Z0-9,]*)\]")
_DECLARATION = re.compile(rf"(input|context|param) ({_NAME}): (.+)")
_BIND = re.compile(rf"bind ({_NAME})")
_OP = re.compile(rf"%({_NAME}) = ({_NAME})\((.*)\)")
_RETURN = re.compile(rf"return (%{_NAME}(?:, %{_NAME})*)")
_TOKEN = re.compile(
    rf"""\s*(?:(?P<ref>[%@$]{_NAME})|(?P<dtype>\#[A-Z0-9]+)|(?P<string>"[A-Za-z0-9_.]*")
    |(?P<float>-?0x[0-9a-f.]+p[+-]?\d+|-?inf)|(?P<int>-?\d+)|(?P<word>none|true|false|T)|(?P<mark>[\[\],]))""",
    re.VERBOSE,
)
_REFERENCES: dict[str, type[Value] | type[Param] | type[Bound]] = {"%": Value, "@": Param, "$": Bound}
_WORDS: dict[str, Arg] = {"none": None, "true": True, "false": False, "T": Symbol("T")}
_MAX_NESTING = 4


class StructureError(ValueError):
    """The text is not a structure that this version may run."""


def parse_structure(text: str) -> Structure:
    """The inverse of :func:`blockc.ir.structure.format_structure`. Raises :class:`StructureError`."""
    lines = text.splitlines()
    if not lines or lines[0] != "structure v1":
        raise StructureError("a structure begins with 'structure v1'")
    typed: dict[str, list[tuple[str, ValueType]]] = {"input": [], "context": [], "param": []}
    binds: list[str] = []
    ops: list[Op] = []
    returns: tuple[str, ...] = ()
    for line in lines[1:]:
        if returns:
            raise StructureError(f"text after 'return': {line[:80]!r}")
        if match := _DECLARATION.fullmatch(line):
            typed[match[1]].append((match[2], _parse_type(match[3])))
        elif match := _BIND.fullmatch(line):
            binds.append(match[1])
        elif match := _OP.fullmatch(line):
            ops.append(Op(result=match[1], target=match[2], args=_parse_args(match[3])))
        elif match := _RETURN.fullmatch(line):
            returns = tuple(name.strip().removeprefix("%") for name in match[1].split(","))
        else:
            raise StructureError(f"cannot read the line {line[:80]!r}")
    structure = Structure(
        inputs=tuple(typed["input"]),
        contexts=tuple(typed["context"]),
        binds=tuple(binds),
        params=tuple(typed["param"]),
        ops=tuple(ops),
        returns=returns,
    )
    verify_structure(structure)
    return structure


def verify_structure(structure: Structure) -> None:
    """Ops are whitelisted with the right arity, names defined once and before use, something is returned."""
    values = [name for name, _ in structure.inputs + structure.contexts]
    params = {name for name, _ in structure.params}
    if len(params) != len(structure.params) or len(set(structure.binds)) != len(structure.binds):
        raise StructureError("a parameter or scalar is declared twice")
    defined = set(values)
    if len(defined) != len(values):
        raise StructureError("an input is declared twice")
    known = {Value: defined, Param: params, Bound: set(structure.binds)}
    for op in structure.ops:
        spec = OPS.get(op.target)
        if spec is None:
            raise StructureError(f"{op.target!r} is not an op that a structure may use")
        if not spec.min_args <= len(op.args) <= spec.max_args:
            raise StructureError(f"{op.target} takes {spec.min_args} to {spec.max_args} arguments, not {len(op.args)}")
        for arg in _leaves(op.args):
            if isinstance(arg, Value | Param | Bound) and arg.name not in known[type(arg)]:
                raise StructureError(f"{op.target} uses {arg.name!r} before it is defined")
        if op.result in defined:
            raise StructureError(f"%{op.result} is defined twice")
        defined.add(op.result)
    if not structure.returns or not set(structure.returns) <= defined:
        raise StructureError("a structure returns values that it defines")
    if len(set(structure.sites)) != len(structure.sites):
        raise StructureError("two linears share one site")


def _leaves(args: tuple[Arg, ...]) -> list[Arg]:
    found: list[Arg] = []
    for arg in args:
        if isinstance(arg, tuple):
            found += _leaves(arg)
        else:
            found.append(arg)
    return found


def _parse_type(text: str) -> ValueType:
    match = _TYPE.fullmatch(text)
    if match is None or match[1] not in DTYPE_BYTES:
        raise StructureError(f"not a type: {text[:80]!r}")
    return ValueType(dtype=match[1], shape=tuple(_parse_dim(dim) for dim in match[2].split(",") if dim))


def _parse_dim(text: str) -> Dim:
    if text in ("T", "R"):
        return cast("Literal['T', 'R']", text)
    if not text.isdigit():
        raise StructureError(f"not a dimension: {text[:80]!r}")
    return int(text)


def _parse_args(text: str) -> tuple[Arg, ...]:
    """Comma-separated arguments with nested lists; a stack of open lists instead of recursion."""
    stack: list[list[Arg]] = [[]]
    position, want_item = 0, True
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise StructureError(f"cannot read the arguments at {text[position : position + 40]!r}")
        position = match.end()
        kind, word = cast("str", match.lastgroup), match[0].strip()
        if word == "[" and want_item and len(stack) <= _MAX_NESTING:
            stack.append([])
        elif word == "]" and len(stack) > 1:
            closed = tuple(stack.pop())
            stack[-1].append(closed)
            want_item = False
        elif word == "," and not want_item:
            want_item = True
        elif kind != "mark" and want_item:
            stack[-1].append(_parse_leaf(kind, word))
            want_item = False
        else:
            raise StructureError(f"misplaced {word!r} in the arguments")
    if len(stack) > 1:
        raise StructureError("a list is never closed")
    return tuple(stack[0])


def _parse_leaf(kind: str, token: str) -> Arg:
    match kind:
        case "ref":
            return _REFERENCES[token[0]](token[1:])
        case "dtype":
            if token[1:] not in DTYPE_BYTES:
                raise StructureError(f"not a dtype: {token!r}")
            return DtypeArg(token[1:])
        case "string":
            return token[1:-1]
        case "float":
            return float(token) if token.endswith("inf") else float.fromhex(token)
        case "int":
            return int(token)
        case _:
            return _WORDS[token]
