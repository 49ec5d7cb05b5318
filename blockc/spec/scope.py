"""What names are bound to, from the innermost ``for`` outwards; and which were ever used.

Invariant: a binding whose value is None failed to evaluate and was reported: using it reports
nothing again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from blockc.diag import Span
from blockc.spec.values import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """An imported file, seen from the one that imports it."""

    bindings: Mapping[str, Binding]
    declared: frozenset[str]  # labels of its top-level blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What a name stands for."""

    kind: str  # "let", "var", "import" or "for"
    name: str
    value: Bound
    span: Span


Bound: TypeAlias = Value | Module | None


@dataclass(slots=True)
class Usage:
    """The bindings of all files, and those that something used."""

    bound: dict[Span, Binding] = field(default_factory=dict)
    used: set[Span] = field(default_factory=set)

    def unused(self) -> Iterator[Binding]:
        """Yield the bindings that nothing used; a leading underscore says that this is meant."""
        for span, binding in self.bound.items():
            if span not in self.used and not binding.name.startswith("_"):
                yield binding


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The bindings of one list of statements inside those of another."""

    bindings: dict[str, Binding]
    outer: Scope | None
    usage: Usage

    def inner(self) -> Scope:
        """Return a new scope inside this one."""
        return Scope(bindings={}, outer=self, usage=self.usage)

    def bind(self, binding: Binding) -> None:
        """Add a name to this scope."""
        self.bindings[binding.name] = binding
        self.usage.bound[binding.span] = binding

    def find(self, name: str) -> Binding | None:
        """Return the innermost binding of ``name`` and count it as used."""
        scope: Scope | None = self
        while scope is not None:
            if (binding := scope.bindings.get(name)) is not None:
                self.usage.used.add(binding.span)
                return binding
            scope = scope.outer
        return None

    def names(self) -> set[str]:
        """Return all names in sight."""
        names: set[str] = set()
        scope: Scope | None = self
        while scope is not None:
            names.update(scope.bindings)
            scope = scope.outer
        return names
