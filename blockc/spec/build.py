"""Build the syntax tree from the parser's reductions.

In: the children of one rule, tokens included. Out: one node. Invariant: a node's span covers its
tokens. The methods are named after the rules of the grammar; rules whose name starts with `_`
never arrive here.
"""

# ruff: noqa: D102 - methods are named after the rules of the grammar
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from lark import Transformer

from blockc.diag import Span
from blockc.spec import syntax
from blockc.spec.scan import Scanned

Children: TypeAlias = list[Any]

_ESCAPES = {'"': '"', "\\": "\\", "n": "\n", "t": "\t", "$": "$"}


def unescape(text: str) -> str:
    """Replace escapes; the scanner has reported unknown ones."""
    if "\\" not in text:
        return text
    characters: list[str] = []
    source = iter(text)
    for character in source:
        if character == "\\":
            character = _ESCAPES.get(following := next(source, ""), following)
        characters.append(character)
    return "".join(characters)


def _name(token: Scanned) -> syntax.Name:
    return syntax.Name(text=token.text, span=token.span)


def _whole(children: Children) -> Span:
    first: Span = children[0].span
    return first.to(children[-1].span)


def _is_mark(child: object, type_: str) -> bool:
    return isinstance(child, Scanned) and child.type == type_


def _nodes(children: Children) -> list[Any]:
    return [child for child in children if not isinstance(child, Scanned)]


def _binary(children: Children) -> syntax.Binary:
    return syntax.Binary(
        operands=tuple(children[::2]),
        operators=tuple(token.text for token in children[1::2]),
        span=_whole(children),
    )


def _body(children: Sequence[Any]) -> tuple[syntax.Statement, ...]:
    """Return the statements between the braces that end ``children``."""
    for position, child in enumerate(children):
        if isinstance(child, Scanned) and child.type == "LBRACE":
            return tuple(children[position + 1 : -1])
    raise AssertionError("the grammar gives every body a brace")


class BuildTree(Transformer[Scanned, Any]):
    """Callbacks for the rules of the grammar. Stateless."""

    def file(self, children: Children) -> tuple[syntax.Statement, ...]:
        return tuple(children)

    # -------------------------------------------------------------- statements

    def import_file(self, children: Children) -> syntax.Import:
        return syntax.Import(path=children[1], alias=_name(children[3]), span=_whole(children))

    def for_each(self, children: Children) -> syntax.For:
        return syntax.For(
            name=_name(children[1]),
            items=children[3],
            body=_body(children[4:]),
            span=_whole(children[:4]),
        )

    def var(self, children: Children) -> syntax.Var:
        default = children[5] if len(children) > 5 else None
        if isinstance(default, Scanned):
            default = None
        return syntax.Var(name=_name(children[1]), type=_name(children[3]), default=default, span=_whole(children))

    def let(self, children: Children) -> syntax.Let:
        return syntax.Let(name=_name(children[1]), value=children[3], span=_whole(children))

    def attribute(self, children: Children) -> syntax.Attribute:
        return syntax.Attribute(name=_name(children[0]), value=children[2], span=_whole(children[:3]))

    def block(self, children: Children) -> syntax.Block:
        label = parent = None
        header_end = children[0].span
        for child in children[1:]:
            if isinstance(child, _Label):
                label, header_end = child.node, child.node.span
            elif isinstance(child, _Parent):
                parent, header_end = child.node, child.node.span
            elif isinstance(child, Scanned) and child.type == "LBRACE":
                break
        return syntax.Block(
            kind=_name(children[0]),
            label=label,
            parent=parent,
            body=_body(children),
            header=children[0].span.to(header_end),
            span=_whole(children),
        )

    def label(self, children: Children) -> _Label:
        node = children[0]
        return _Label(_name(node) if isinstance(node, Scanned) else node)

    def parent(self, children: Children) -> _Parent:
        return _Parent(children[0])

    # ------------------------------------------------------------- expressions

    def disjunction(self, children: Children) -> syntax.Binary:
        return _binary(children)

    def conjunction(self, children: Children) -> syntax.Binary:
        return _binary(children)

    def comparison(self, children: Children) -> syntax.Binary:
        return _binary(children)

    def range(self, children: Children) -> syntax.Binary:
        return _binary(children)

    def sum(self, children: Children) -> syntax.Binary:
        return _binary(children)

    def product(self, children: Children) -> syntax.Binary:
        return _binary(children)

    def unary(self, children: Children) -> syntax.Unary:
        return syntax.Unary(
            operators=tuple(token.text for token in children[:-1]),
            operand=children[-1],
            span=_whole(children),
        )

    def number(self, children: Children) -> syntax.Number:
        return syntax.Number(text=children[0].text, span=children[0].span)

    def constant(self, children: Children) -> syntax.Constant:
        value = {"true": True, "false": False}.get(children[0].text)
        return syntax.Constant(value=value, span=children[0].span)

    def string(self, children: Children) -> syntax.String:
        parts: list[str | syntax.Expr] = []
        for child in children:
            if not isinstance(child, Scanned):
                parts.append(child)
            elif child.type == "TEXT":
                parts.append(unescape(child.text))
        return syntax.String(parts=tuple(parts), span=_whole(children))

    def list(self, children: Children) -> syntax.ListOf:
        return syntax.ListOf(items=tuple(_nodes(children)), span=_whole(children))

    def object(self, children: Children) -> syntax.ObjectOf:
        return syntax.ObjectOf(pairs=tuple(_nodes(children)), span=_whole(children))

    def pair(self, children: Children) -> syntax.Pair:
        key, _, value = (child for child in children if not _is_mark(child, "COMMA"))
        return syntax.Pair(key=_name(key) if isinstance(key, Scanned) else key, value=value)

    def group(self, children: Children) -> syntax.Expr:
        inner: syntax.Expr = children[1]
        return inner

    def reference(self, children: Children) -> syntax.Reference:
        return syntax.Reference(name=_name(children[0]), trailers=tuple(children[1:]), span=_whole(children))

    def member(self, children: Children) -> syntax.Member:
        return syntax.Member(name=_name(children[1]), span=_whole(children))

    def index(self, children: Children) -> syntax.Index:
        return syntax.Index(position=children[1], span=_whole(children))

    def splat(self, children: Children) -> syntax.Splat:
        return syntax.Splat(span=_whole(children))

    def call(self, children: Children) -> syntax.Arguments:
        return syntax.Arguments(items=tuple(_nodes(children)), span=_whole(children))

    def argument(self, children: Children) -> syntax.Argument:
        if len(children) == 1:
            return syntax.Argument(name=None, value=children[0])
        return syntax.Argument(name=_name(children[0]), value=children[2])


class _Label:
    __slots__ = ("node",)

    def __init__(self, node: syntax.Name | syntax.String) -> None:
        self.node = node


class _Parent:
    __slots__ = ("node",)

    def __init__(self, node: syntax.Reference | syntax.String) -> None:
        self.node = node
