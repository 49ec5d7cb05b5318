"""Run the statements: ``let``, ``var``, ``import`` and ``for`` go, plain blocks remain.

In: the syntax tree of a file. Out: its :class:`ExpandedBlock` s, all names bound. Invariant:
declarations are free in order within their list of statements; loops take at most ``MAX_ITEMS``
turns altogether.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

from blockc.diag import Label, Span
from blockc.spec import syntax
from blockc.spec.evaluate import MAX_ITEMS, Evaluator
from blockc.spec.mentions import in_dependency_order, mentions
from blockc.spec.scope import Binding, Bound, Module, Scope
from blockc.spec.units import PLAIN, Quantity
from blockc.spec.values import Range, Value, describe
from blockc.spec.variables import variable_value


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Where relative paths of a file start. ``written``: seen from the folder of the root spec."""

    path: Path
    written: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpandedAttribute:
    """An attribute; ``value`` None: it failed to evaluate and was reported."""

    name: str
    name_span: Span
    value: Value | None
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpandedBlock:
    """A block as the schema sees it. ``broken``: some part failed to evaluate and was reported."""

    kind: str
    kind_span: Span
    label: Value | None
    parent: Value | None
    attributes: tuple[ExpandedAttribute, ...]
    blocks: tuple[ExpandedBlock, ...]
    header: Span
    folder: Folder
    broken: bool


@dataclass(slots=True)
class Turns:
    """The turns that all loops of a run have taken."""

    taken: int = 0


ImportFile: TypeAlias = "Callable[[syntax.Import, str], Module | None]"


@dataclass(slots=True)
class _Body:
    attributes: list[ExpandedAttribute] = field(default_factory=list)
    blocks: list[ExpandedBlock] = field(default_factory=list)
    broken: bool = False


@dataclass(slots=True, kw_only=True)
class Expander:
    """Expands one file. All files of a run share ``turns``."""

    evaluator: Evaluator
    folder: Folder
    variables: Mapping[str, str]
    import_file: ImportFile
    turns: Turns

    def expand(self, statements: tuple[syntax.Statement, ...], scope: Scope) -> _Body:
        """Return what the statements of a whole file declare; binds its names in ``scope``."""
        body = _Body()
        self._statements(statements, scope, body, top=True)
        return body

    def _statements(self, statements: tuple[syntax.Statement, ...], scope: Scope, body: _Body, *, top: bool) -> None:
        self._bind(statements, scope, top=top)
        for statement in statements:
            match statement:
                case syntax.Attribute():
                    value = self.evaluator.evaluate(statement.value, scope)
                    body.broken |= value is None
                    body.attributes.append(
                        ExpandedAttribute(
                            name=statement.name.text,
                            name_span=statement.name.span,
                            value=value,
                            span=statement.span,
                        )
                    )
                case syntax.Block():
                    body.blocks.append(self._block(statement, scope))
                case syntax.For():
                    self._for(statement, scope, body)

    def _block(self, block: syntax.Block, scope: Scope) -> ExpandedBlock:
        inner = _Body()
        label: Value | None = None
        match block.label:
            case syntax.Name(text=text, span=span):
                label = Value(data=text, span=span)
            case syntax.String() as string:
                label = self.evaluator.evaluate(string, scope)
                inner.broken |= label is None
        parent: Value | None = None
        if block.parent is not None:
            parent = self.evaluator.evaluate(block.parent, scope)
            inner.broken |= parent is None
        self._statements(block.body, scope.inner(), inner, top=False)
        return ExpandedBlock(
            kind=block.kind.text,
            kind_span=block.kind.span,
            label=label,
            parent=parent,
            attributes=tuple(inner.attributes),
            blocks=tuple(inner.blocks),
            header=block.header,
            folder=self.folder,
            broken=inner.broken,
        )

    # ------------------------------------------------------------------- loops

    def _for(self, loop: syntax.For, scope: Scope, body: _Body) -> None:
        items = self.evaluator.evaluate(loop.items, scope)
        if items is None:
            body.broken = True
            return
        data = items.data
        if not isinstance(data, tuple | Range):
            message = f"`for` goes through a list or a range, found {describe(items)}"
            help_ = "write `for i in 0..3` or `for a in [x, y]`"
            self.evaluator.diags.report("BC104", message, at=items.span, help=help_)
            body.broken = True
            return
        count = data.last - data.first + 1 if isinstance(data, Range) else len(data)
        if self.turns.taken + count > MAX_ITEMS:
            message = f"this loop brings the spec to {self.turns.taken + count} turns"
            help_ = f"all loops of a spec together take at most {MAX_ITEMS} turns"
            self.evaluator.diags.report("BC109", message, at=items.span, help=help_)
            body.broken = True
            return
        self.turns.taken += max(0, count)
        before = len(self.evaluator.diags)
        for value in _turns(data, items.span):
            inner = scope.inner()
            inner.bindings[loop.name.text] = Binding(kind="for", name=loop.name.text, value=value, span=loop.name.span)
            self._statements(loop.body, inner, body, top=False)
            if len(self.evaluator.diags) > before:
                body.broken = True
                return  # the other turns would most likely repeat it

    # ------------------------------------------------------------------- names

    def _bind(self, statements: tuple[syntax.Statement, ...], scope: Scope, *, top: bool) -> None:
        """Bind what the statements declare, each name after those that its value mentions."""
        lets: dict[str, syntax.Let | syntax.Var] = {}
        seen: dict[str, Span] = {}
        for statement in statements:
            if not isinstance(statement, syntax.Let | syntax.Var | syntax.Import):
                continue
            name = statement.alias if isinstance(statement, syntax.Import) else statement.name
            if not top and not isinstance(statement, syntax.Let):
                word = "var" if isinstance(statement, syntax.Var) else "import"
                message = f"`{word}` stands at the top level of a file"
                help_ = "move it out of the block, or use `let`"
                self.evaluator.diags.report("BC103", message, at=statement.span, help=help_)
                continue
            if name.text in seen:
                self._duplicate(name, seen[name.text])
                continue
            seen[name.text] = name.span
            if isinstance(statement, syntax.Import):
                module = self.import_file(statement, name.text)
                self._bind_one(scope, "import", name, module)
            else:
                lets[name.text] = statement
        edges = {name: _mentioned(let) for name, let in lets.items()}
        order, cycles = in_dependency_order(edges)
        for cycle in cycles:
            self._cycle([lets[on_cycle].name for on_cycle in cycle])
            for on_cycle in cycle:
                self._bind_one(scope, "let", lets[on_cycle].name, None)
        for defined in order:
            let = lets[defined]
            if isinstance(let, syntax.Let):
                value = self.evaluator.evaluate(let.value, scope)
                self._bind_one(scope, "let", let.name, value)
            else:
                value = variable_value(let, scope, self.evaluator, self.variables)
                self._bind_one(scope, "var", let.name, value)

    def _bind_one(self, scope: Scope, kind: str, name: syntax.Name, value: Bound) -> None:
        scope.bind(Binding(kind=kind, name=name.text, value=value, span=name.span))

    def _duplicate(self, name: syntax.Name, first: Span) -> None:
        self.evaluator.diags.report(
            "BC106",
            f"`{name.text}` is declared twice",
            at=name.span,
            secondary=(Label(span=first, text="first declared here"),),
            help="give one of them another name",
        )

    def _cycle(self, names: list[syntax.Name]) -> None:
        chain = " -> ".join(f"`{name.text}`" for name in (*names[:8], names[0]))
        self.evaluator.diags.report(
            "BC107",
            f"`{names[0].text}` is defined by itself: {chain}",
            at=names[0].span,
            secondary=tuple(Label(span=name.span) for name in names[1:4]),
            help="break the circle: give one of them a value of its own",
        )


def _mentioned(let: syntax.Let | syntax.Var) -> frozenset[str]:
    expr = let.value if isinstance(let, syntax.Let) else let.default
    return frozenset(mentions(expr)) if expr is not None else frozenset()


def _turns(data: tuple[Value, ...] | Range, span: Span) -> Iterator[Value]:
    if isinstance(data, tuple):
        yield from data
        return
    for number in range(data.first, data.last + 1):
        yield Value(data=Quantity(number=Fraction(number), unit=PLAIN), span=span)
