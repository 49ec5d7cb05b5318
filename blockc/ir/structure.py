"""``Structure``: the program of a block without its weights, and its canonical text.

    structure v1
    input x: BF16[1,T,192]
    context c0: BF16[1,T,32]
    bind scale0
    param self_attn.q_proj.weight: BF16[192,192]
    %0 = blockc.linear(%x, @self_attn.q_proj.weight, none, "self_attn.q_proj")
    %1 = aten.reshape.default(%0, [1, T, 6, 32])
    return %1

``T`` is the number of tokens in the step, of all requests together; ``R`` the number of rows whose logits are
wanted. Every op yields one value, so a structure runs as a flat tape. Two structures are the same exactly if their
texts are. Parsed by hand against a whitelist of ops (`ops.py`): nothing in a plan is ever executed as code.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Dim = int | Literal["T", "R"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueType:
    """Dtype (safetensors spelling) and shape of a value."""

    dtype: str
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Value:
    """Reference to an input, a context input, or the result of an earlier op: ``%name``."""

    name: str


@dataclass(frozen=True, slots=True)
class Param:
    """Reference to a parameter: ``@name``."""

    name: str


@dataclass(frozen=True, slots=True)
class Bound:
    """A scalar that the block binds: ``$name``."""

    name: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """The token count ``T`` as a size."""

    name: Literal["T"]


@dataclass(frozen=True, slots=True)
class DtypeArg:
    """A dtype as an argument: ``#F32``."""

    code: str


Arg = Value | Param | Bound | Symbol | DtypeArg | None | bool | int | float | str | tuple["Arg", ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """``%result = target(args)``."""

    result: str
    target: str
    args: tuple[Arg, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """See the module's text. ``inputs``, ``contexts`` and ``params`` map names to types, in order."""

    inputs: tuple[tuple[str, ValueType], ...]
    contexts: tuple[tuple[str, ValueType], ...]
    binds: tuple[str, ...]
    params: tuple[tuple[str, ValueType], ...]
    ops: tuple[Op, ...]
    returns: tuple[str, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the places where a fine-tune may act, in order of execution."""
        return tuple(op.args[3] for op in self.ops if op.target == "blockc.linear" and isinstance(op.args[3], str))

    @property
    def attention_count(self) -> int:
        """How many KV slots one occurrence of the block takes."""
        return sum(op.target == "blockc.attention" for op in self.ops)


def format_arg(arg: Arg) -> str:
    """The canonical text of one argument."""
    match arg:
        case None:
            return "none"
        case bool():
            return "true" if arg else "false"
        case int():
            return str(arg)
        case float():
            return arg.hex() if arg not in (float("inf"), float("-inf")) else ("inf" if arg > 0 else "-inf")
        case str():
            return f'"{arg}"'
        case Value(name):
            return f"%{name}"
        case Param(name):
            return f"@{name}"
        case Bound(name):
            return f"${name}"
        case Symbol(name):
            return name
        case DtypeArg(code):
            return f"#{code}"
        case tuple():
            return f"[{', '.join(format_arg(item) for item in arg)}]"


def format_structure(structure: Structure) -> str:
    """The canonical text."""
    lines = ["structure v1"]
    lines += [f"input {name}: {type_}" for name, type_ in structure.inputs]
    lines += [f"context {name}: {type_}" for name, type_ in structure.contexts]
    lines += [f"bind {name}" for name in structure.binds]
    lines += [f"param {name}: {type_}" for name, type_ in structure.params]
    lines += [f"%{op.result} = {op.target}({', '.join(map(format_arg, op.args))})" for op in structure.ops]
    lines.append(f"return {', '.join(f'%{name}' for name in structure.returns)}")
    return "\n".join(lines) + "\n"


def structure_digest(structure: Structure) -> str:
    """SHA-256 (hex) of the canonical text."""
    return hashlib.sha256(format_structure(structure).encode()).hexdigest()
