"""The types of attributes that refer to declarations or are forms: ``delta(max_error = 1%)``.

In: an evaluated value. Out: the name that is referred to, or of the form, or None after a report.
"""

# ruff: noqa: D102 - `expects` and `convert` are documented once, in ValueType
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from blockc.spec.context import Context, ValueType
from blockc.spec.suggest import did_you_mean
from blockc.spec.values import Call, Value, Word
from blockc.spec.valuetypes import OneOf


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A reference to a declaration: an identifier; a string if computed. Becomes its name."""

    kinds: tuple[str, ...]

    @property
    def expects(self) -> str:
        return "the name of a " + " or ".join(_SPOKEN.get(kind, kind) for kind in self.kinds)

    def convert(self, value: Value, context: Context) -> str | None:
        name = value.data.name if isinstance(value.data, Word) else value.data
        if not isinstance(name, str):
            context.wrong_type(self.expects, value)
            return None
        for kind in self.kinds:
            if name in context.declared.spans.get(kind, {}):
                context.declared.used.add((kind, name))
                return name
        self._unknown(name, value, context)
        return None

    def _unknown(self, name: str, value: Value, context: Context) -> None:
        nouns = " or ".join(_SPOKEN.get(kind, kind) for kind in reversed(self.kinds))
        for kind in context.declared.spans:
            if name in context.declared.spans[kind]:
                message = f"{context.where}: `{name}` is a {kind}; expected {self.expects}"
                context.diags.report("BC104", message, at=value.span)
                return
        listing = f"a {nouns} is one of" if context.declared.names(self.kinds) else None
        help_ = did_you_mean(name, context.declared.names(self.kinds), listing=listing)
        context.diags.report(
            "BC101",
            f"no {nouns} named `{name}`",
            at=value.span,
            help=help_ or f"declare it, such as `{_EXAMPLE[self.kinds[0]].format(name=name)}`",
        )


_SPOKEN = {"finetune": "fine-tune"}
_EXAMPLE = {
    "base": 'base {name} : hf("./models/{name}") {{ }}',
    "profile": "profile {name} {{ slo {{ ttft_p95 = 500ms }} }}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A call with typed arguments, such as ``delta(max_error = 1%)``. Becomes what ``make`` makes of them, or its name.

    ``required``: named arguments that it cannot do without; ``bare``: its name alone means it without arguments.
    """

    name: str
    positional: tuple[ValueType, ...] = ()
    named: Mapping[str, ValueType] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    bare: bool = False
    make: Callable[[Mapping[str | int, object]], object] | None = None
    in_effect: bool = True
    example: str = ""

    @property
    def expects(self) -> str:
        return f"`{self.example or self.name + '(...)'}`"

    def convert(self, value: Value, context: Context) -> object | None:
        arguments = self.arguments(value, context)
        if arguments is None:
            return None
        for name in self.required:
            if name not in arguments:
                context.wrong_type(self.expects, value, help_=f"`{self.name}` needs `{name}`")
                return None
        if not self.in_effect:
            context.not_in_effect(f"{context.where}: `{self.name}(...)`", value.span)
        return self.name if self.make is None else self.make(arguments)

    def arguments(self, value: Value, context: Context) -> dict[str | int, object] | None:
        """Return the converted arguments by position or name."""
        call = value.data
        if not isinstance(call, Call) or call.name != self.name:
            context.wrong_type(self.expects, value)
            return None
        if len(call.positional) != len(self.positional):
            message = f"`{self.name}` takes {len(self.positional)} unnamed argument(s), "
            message += f"found {len(call.positional)}"
            context.diags.report("BC104", message, at=value.span, help=f"write {self.expects}")
            return None
        converted: dict[str | int, object | None] = {}
        for position, (type_, argument) in enumerate(zip(self.positional, call.positional, strict=True)):
            converted[position] = type_.convert(argument, context)
        for name, argument in call.named.items():
            if name not in self.named:
                help_ = did_you_mean(name, self.named, listing="it takes")
                message = f"`{self.name}` takes no argument `{name}`"
                context.diags.report("BC102", message, at=argument.span, help=help_)
                converted[name] = None
            else:
                converted[name] = self.named[name].convert(argument, context)
        whole = {key: item for key, item in converted.items() if item is not None}
        return whole if len(whole) == len(converted) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Either:
    """One of several types: a call's name tells which form, anything else is ``otherwise``."""

    otherwise: OneOf
    forms: tuple[Form, ...]

    @property
    def expects(self) -> str:
        return self._otherwise.expects

    @property
    def _otherwise(self) -> OneOf:
        return replace(self.otherwise, beside=tuple(form.example or f"{form.name}(...)" for form in self.forms))

    def convert(self, value: Value, context: Context) -> object | None:
        if not isinstance(value.data, Call):
            for form in self.forms:
                if isinstance(value.data, Word) and value.data.name == form.name:
                    if form.bare and form.make is not None:
                        return form.make({})
                    context.wrong_type(self.expects, value, help_=f"write {form.expects}")
                    return None
            return self._otherwise.convert(value, context)
        for form in self.forms:
            if form.name == value.data.name:
                return form.convert(value, context)
        names = [form.name for form in self.forms]
        help_ = did_you_mean(value.data.name, names)
        context.wrong_type(self.expects, value, help_=help_)
        return None
