"""The syntax tree of one file: what was written, nothing looked up.

Every node has a span. Operators of one precedence are one flat node, so that the depth of a tree
is bounded by the nesting of brackets, which the scanner bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from blockc.diag import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """An identifier."""

    text: str
    span: Span


# ------------------------------------------------------------------ expressions


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A number, with or without a unit, as written: ``8rps``."""

    text: str
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """``true``, ``false`` or ``null``."""

    value: bool | None
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class String:
    """A quoted string: text and ``${...}`` in turn."""

    parts: tuple[str | Expr, ...]
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOf:
    """``[a, b]``."""

    items: tuple[Expr, ...]
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """``key = value`` in an object."""

    key: Name | String
    value: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectOf:
    """``{ key = value, ... }``."""

    pairs: tuple[Pair, ...]
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """``.name``."""

    name: Name
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """``[expr]``."""

    position: Expr
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Splat:
    """``[*]``: what follows is applied to every item."""

    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """An argument of a call; ``name`` None: positional."""

    name: Name | None
    value: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """``(a, name = b)``."""

    items: tuple[Argument, ...]
    span: Span


Trailer: TypeAlias = Member | Index | Splat | Arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A name and what follows it: ``a.base``, ``hf("./x")``, ``adapters[0].name``."""

    name: Name
    trailers: tuple[Trailer, ...]
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Unary:
    """Signs before an operand, outermost first: ``-x``, ``!x``."""

    operators: tuple[str, ...]
    operand: Expr
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """Operands and the operators between them, all of one precedence, applied from the left."""

    operands: tuple[Expr, ...]
    operators: tuple[str, ...]
    span: Span


Expr: TypeAlias = Number | Constant | String | ListOf | ObjectOf | Reference | Unary | Binary


# ------------------------------------------------------------------- statements


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """``import "x.blk" as x``."""

    path: String
    alias: Name
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Var:
    """``var name : type = default``."""

    name: Name
    type: Name
    default: Expr | None
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Let:
    """``let name = value``."""

    name: Name
    value: Expr
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class For:
    """``for name in items { ... }``."""

    name: Name
    items: Expr
    body: tuple[Statement, ...]
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """``name = value``."""

    name: Name
    value: Expr
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """``kind label : parent { ... }``. ``header`` spans what stands before the brace."""

    kind: Name
    label: Name | String | None
    parent: Reference | String | None
    body: tuple[Statement, ...]
    header: Span
    span: Span


Statement: TypeAlias = Import | Var | Let | For | Attribute | Block


@dataclass(frozen=True, slots=True, kw_only=True)
class Comment:
    """A comment, with its marks."""

    text: str
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file."""

    name: str
    statements: tuple[Statement, ...]
    comments: tuple[Comment, ...]
