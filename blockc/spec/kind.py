"""What a kind of block is: where it stands, whether it has a name and a parent, and what is in it."""

from __future__ import annotations

from dataclasses import dataclass

from blockc.spec.context import ValueType


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeSpec:
    """An attribute of a kind. ``default`` is what its type would give, in base units."""

    name: str
    type: ValueType
    doc: str
    required: bool = False
    default: object | None = None
    in_effect: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentSpec:
    """What may stand after the colon of a block's header."""

    type: ValueType
    required: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of block. ``many``: may stand more than once where it stands."""

    name: str
    doc: str
    named: bool = False
    many: bool = False
    parent: ParentSpec | None = None
    attributes: tuple[AttributeSpec, ...] = ()
    blocks: tuple[Kind, ...] = ()
    in_effect: bool = True

    def attribute(self, name: str) -> AttributeSpec | None:
        """Return the attribute of this name, if there is one."""
        return next((spec for spec in self.attributes if spec.name == name), None)

    def block(self, name: str) -> Kind | None:
        """Return the kind of nested block of this name, if there is one."""
        return next((kind for kind in self.blocks if kind.name == name), None)


def attribute(
    name: str,
    type_: ValueType,
    doc: str,
    *,
    required: bool = False,
    default: object | None = None,
    in_effect: bool = True,
) -> AttributeSpec:
    """An attribute; see `AttributeSpec`."""
    return AttributeSpec(name=name, type=type_, doc=doc, required=required, default=default, in_effect=in_effect)
