"""Check blocks against the schema.

In: expanded blocks. Out: :class:`Typed` blocks: known kinds, known attributes, values of the right
type in base units. Everything that does not fit is reported and left out. Invariant: a typed
block's values conform to its kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from blockc.diag import Diagnostics, Label, Span
from blockc.spec.context import Context, Declared, report_not_in_effect
from blockc.spec.expand import ExpandedAttribute, ExpandedBlock
from blockc.spec.kind import AttributeSpec, Kind
from blockc.spec.schema import ROOT, all_kinds
from blockc.spec.suggest import did_you_mean
from blockc.spec.values import describe, shorten

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Typed:
    """A block that fits the schema. ``values``: what was written; :meth:`get` adds defaults."""

    kind: Kind
    name: str
    parent: object | None
    parent_span: Span | None
    values: Mapping[str, object]
    spans: Mapping[str, Span]
    given: frozenset[str]  # attributes that were written, whether or not they have a value
    blocks: tuple[Typed, ...]
    header: Span
    name_span: Span

    def get(self, attribute: str) -> object | None:
        """Return the value of an attribute, its default, or None."""
        spec = self.kind.attribute(attribute)
        assert spec is not None, f"the schema of {self.kind.name} has no {attribute}"
        return self.values.get(attribute, spec.default)

    def all(self, kind: str) -> Iterator[Typed]:
        """Yield the nested blocks of a kind."""
        return (block for block in self.blocks if block.kind.name == kind)

    def one(self, kind: str) -> Typed | None:
        """Return the nested block of a kind that stands at most once."""
        return next(self.all(kind), None)


def validate(blocks: tuple[ExpandedBlock, ...], *, declared: Declared, diags: Diagnostics) -> tuple[Typed, ...]:
    """Check the blocks of a whole spec."""
    return _Validator(declared=declared, diags=diags).nested(ROOT, blocks)


def label_of(block: ExpandedBlock) -> str | None:
    """Return the name of a block, if it has a usable one."""
    data = block.label.data if block.label is not None else None
    return data if isinstance(data, str) and _NAME.fullmatch(data) else None


@dataclass(slots=True, kw_only=True)
class _Validator:
    declared: Declared
    diags: Diagnostics

    def nested(self, outer: Kind, blocks: tuple[ExpandedBlock, ...]) -> tuple[Typed, ...]:
        """Check the blocks inside a block of kind ``outer``."""
        seen: dict[tuple[str, str], ExpandedBlock] = {}
        typed: list[Typed] = []
        for block in blocks:
            kind = outer.block(block.kind)
            if kind is None:
                self._unknown_kind(outer, block)
                continue
            name = self._name(kind, block)
            space = "model" if kind.name in ("base", "finetune") else kind.name
            key = (space, name if kind.many and kind.named and name else "")
            if (kind.named and name is None) or (kind.many and not kind.named):
                pass
            elif key in seen:
                self._duplicate(kind, block, name, seen[key])
                self._block(kind, block, name or "")  # it may have problems of its own
                continue
            else:
                seen[key] = block
            typed.append(self._block(kind, block, name or ""))
        return tuple(typed)

    def _block(self, kind: Kind, block: ExpandedBlock, name: str) -> Typed:
        if not kind.in_effect:
            report_not_in_effect(self.diags, f"`{kind.name}`", block.kind_span)
        values: dict[str, object] = {}
        first: dict[str, ExpandedAttribute] = {}
        for attribute in block.attributes:
            spec = kind.attribute(attribute.name)
            if spec is None:
                self._unknown_attribute(kind, attribute)
            elif attribute.name in first:
                label = Label(span=first[attribute.name].span, text="first given here")
                message = f"`{attribute.name}` is given twice"
                self.diags.report(
                    "BC106",
                    message,
                    at=attribute.name_span,
                    secondary=(label,),
                    help="remove one of them",
                )
            else:
                first[attribute.name] = attribute
                value = self._value(kind, block, spec, attribute)
                if value is not None:
                    values[attribute.name] = value
        for spec in kind.attributes:
            if spec.required and spec.name not in first and not block.broken:
                message = f"{_spoken(kind, name)} has no `{spec.name}`"
                help_ = f"add `{spec.name} = ...`: {spec.type.expects}"
                self.diags.report("BC108", message, at=block.header, help=help_)
        return Typed(
            kind=kind,
            name=name,
            parent=self._parent(kind, block, name),
            parent_span=block.parent.span if block.parent is not None else None,
            values=values,
            spans={key: item.value.span for key, item in first.items() if item.value is not None},
            given=frozenset(first),
            blocks=self.nested(kind, block.blocks),
            header=block.header,
            name_span=block.label.span if block.label is not None else block.kind_span,
        )

    def _value(
        self, kind: Kind, block: ExpandedBlock, spec: AttributeSpec, attribute: ExpandedAttribute
    ) -> object | None:
        if attribute.value is None:
            return None
        context = self._context(block, f"`{spec.name}` of `{kind.name}`")
        if not spec.in_effect and kind.in_effect:
            report_not_in_effect(self.diags, context.where, attribute.name_span)
        return spec.type.convert(attribute.value, context)

    def _context(self, block: ExpandedBlock, where: str) -> Context:
        return Context(diags=self.diags, declared=self.declared, folder=block.folder, where=where)

    def _parent(self, kind: Kind, block: ExpandedBlock, name: str) -> object | None:
        if kind.parent is None:
            if block.parent is not None:
                message = f"{_a(kind)} derives from nothing"
                help_ = f"write `{kind.name}{' ' + name if name else ''} {{ ... }}`"
                self.diags.report("BC104", message, at=block.parent.span, help=help_)
            return None
        if block.parent is None:
            if kind.parent.required and not block.broken:
                message = f"{_spoken(kind, name)} does not say what it derives from"
                help_ = f"write `{kind.name} {name or 'NAME'} : ...`: {kind.parent.type.expects}"
                self.diags.report("BC108", message, at=block.header, help=help_)
            return None
        where = f"after the colon of {_spoken(kind, name)}"
        return kind.parent.type.convert(block.parent, self._context(block, where))

    # ------------------------------------------------------------------- names

    def _name(self, kind: Kind, block: ExpandedBlock) -> str | None:
        if block.label is None:
            if kind.named and not block.broken:
                message = f"{_a(kind)} needs a name"
                help_ = f"write `{kind.name} NAME`"
                self.diags.report("BC108", message, at=block.kind_span, help=help_)
            return None
        if not kind.named:
            message = f"{_a(kind)} has no name"
            help_ = f"write `{kind.name} {{ ... }}`"
            self.diags.report("BC104", message, at=block.label.span, help=help_)
            return None
        name = label_of(block)
        if name is None:
            data = block.label.data
            shown = shorten(data) if isinstance(data, str) else describe(block.label)
            message = f'"{shown}" cannot be the name of {_a(kind)}'
            help_ = "a name has 1 to 128 letters (a-z), digits, `_`, `-` and `.`"
            self.diags.report("BC109", message, at=block.label.span, help=help_)
        return name

    def _duplicate(self, kind: Kind, block: ExpandedBlock, name: str | None, first: ExpandedBlock) -> None:
        label = Label(span=first.header, text="first declared here")
        if not (kind.named and kind.many):
            message, help_ = f"a second `{kind.name}`", "there can be one; merge them"
        else:
            message = f"the {_plain(kind)} `{name}` is declared twice"
            help_ = "give one of them another name"
            if first.kind != block.kind:
                message = f"`{name}` is declared as a {_plain(kind)} and as a `{first.kind}`"
        at = block.label.span if block.label is not None and kind.named else block.header
        self.diags.report("BC106", message, at=at, secondary=(label,), help=help_)

    # ---------------------------------------------------------------- unknowns

    def _unknown_kind(self, outer: Kind, block: ExpandedBlock) -> None:
        place = "at the top level" if outer is ROOT else f"in {_a(outer)}"
        if outer.attribute(block.kind) is not None:
            message = f"`{block.kind}` is an attribute, not a block"
            help_: str | None = f"write `{block.kind} = ...`"
        elif any(kind.name == block.kind for kind in all_kinds()):
            message = f"`{block.kind}` does not stand {place}"
            homes = [k for k in (ROOT, *all_kinds()) if k.block(block.kind) is not None]
            help_ = f"it stands {_places(homes)}"
        else:
            message = f"no kind of block is named `{block.kind}`"
            here = [kind.name for kind in outer.blocks]
            help_ = did_you_mean(block.kind, [*here, *(a.name for a in outer.attributes)])
            if help_ is None:
                help_ = did_you_mean(block.kind, here, listing=f"{place} there may be")
        self.diags.report("BC103", message, at=block.kind_span, help=help_)

    def _unknown_attribute(self, kind: Kind, attribute: ExpandedAttribute) -> None:
        name = attribute.name
        if kind.block(name) is not None:
            message = f"`{name}` is a block, not an attribute"
            help_: str | None = f"write `{name} {{ ... }}`, without `=`"
        else:
            message = f"{_a(kind)} has no attribute `{name}`"
            known = [spec.name for spec in kind.attributes] + [k.name for k in kind.blocks]
            help_ = did_you_mean(name, known)
            homes = [k for k in all_kinds() if k.attribute(name) is not None]
            if help_ is None and homes:
                help_ = f"`{name}` stands {_places(homes)}"
            elif help_ is None:
                help_ = did_you_mean(name, known, listing="it has")
        self.diags.report("BC102", message, at=attribute.name_span, help=help_)


def _a(kind: Kind) -> str:
    return f"{'an' if kind.name[0] in 'aeiou' else 'a'} `{kind.name}`"


def _plain(kind: Kind) -> str:
    return {"finetune": "fine-tune"}.get(kind.name, kind.name)


def _spoken(kind: Kind, name: str) -> str:
    return f"the {_plain(kind)} `{name}`" if name else f"this `{kind.name}`"


def _places(homes: list[Kind]) -> str:
    places = ["at the top level" if kind is ROOT else f"in `{kind.name}`" for kind in homes]
    return " or ".join(dict.fromkeys(places))
