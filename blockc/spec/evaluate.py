"""Evaluate expressions.

In: an expression and the names in sight. Out: a :class:`~blockc.spec.values.Value`, or None after
a report. Invariant: always terminates, in time and space bounded by the text: there is no
recursion in the language, numbers, strings and lists are bounded, and ``for`` counts its turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blockc.diag import Diagnostics, Span
from blockc.spec import syntax
from blockc.spec.operators import combine, negate
from blockc.spec.scope import Module, Scope
from blockc.spec.suggest import did_you_mean
from blockc.spec.units import (
    PLAIN,
    QUANTITY_TEXT,
    Quantity,
    UnitProblem,
    parse_quantity,
    per_time_unit,
)
from blockc.spec.values import Call, Data, Object, Secret, Value, Word, describe, shorten

MAX_TEXT = 1 << 16  # code points of a string; interpolation could double one per `let`
MAX_ITEMS = 100_000  # items of a list, turns of all loops


@dataclass(slots=True, kw_only=True)
class Evaluator:
    """What all expressions of a run share."""

    environ: Mapping[str, str]
    diags: Diagnostics

    def evaluate(self, expr: syntax.Expr, scope: Scope) -> Value | None:
        """Return the value of ``expr``; None means that a problem was reported."""
        match expr:
            case syntax.Number():
                quantity = parse_quantity(expr.text)
                if isinstance(quantity, UnitProblem):
                    self.diags.report(quantity.code, quantity.message, at=expr.span, help=quantity.help)
                    return None
                return Value(data=quantity, span=expr.span)
            case syntax.Constant():
                return Value(data=expr.value, span=expr.span)
            case syntax.String():
                return self._string(expr, scope)
            case syntax.ListOf():
                items = [self.evaluate(item, scope) for item in expr.items]
                present = tuple(item for item in items if item is not None)
                complete = len(present) == len(items)
                return Value(data=present, span=expr.span) if complete else None
            case syntax.ObjectOf():
                return self._object(expr, scope)
            case syntax.Reference():
                return self._reference(expr, scope)
            case syntax.Unary():
                operand = self.evaluate(expr.operand, scope)
                return negate(operand, expr.operators, expr.span, self.diags) if operand else None
            case syntax.Binary():
                return self._binary(expr, scope)

    # ----------------------------------------------------------------- strings

    def _string(self, expr: syntax.String, scope: Scope) -> Value | None:
        if len(expr.parts) == 1 and isinstance(expr.parts[0], str):
            return self._bounded_text(expr.parts[0], expr.span)
        texts = [part if isinstance(part, str) else self._interpolated(part, scope) for part in expr.parts]
        present = [text for text in texts if text is not None]
        return self._bounded_text("".join(present), expr.span) if len(present) == len(texts) else None

    def _bounded_text(self, text: str, span: Span) -> Value | None:
        if len(text) > MAX_TEXT:
            self.diags.report("BC109", f"a string of more than {MAX_TEXT} characters", at=span)
            return None
        return Value(data=text, span=span)

    def _interpolated(self, part: syntax.Expr, scope: Scope) -> str | None:
        value = self.evaluate(part, scope)
        if value is None:
            return None
        match value.data:
            case str(text):
                return text
            case bool(truth):
                return str(truth).lower()
            case Quantity() as quantity:
                return str(quantity)
            case Word(name=name):
                self._unbound(name, part.span, scope)
                return None
            case Secret():
                message = "a secret cannot be part of a string: it would enter the plan"
                self.diags.report("BC602", message, at=part.span, help="give `secret(...)` by itself")
                return None
        message = f"expected something that a string can hold, found {describe(value)}"
        self.diags.report("BC104", message, at=part.span)
        return None

    def _unbound(self, name: str, span: Span, scope: Scope) -> None:
        self.diags.report(
            "BC101",
            f"no value named `{name}`",
            at=span,
            help=did_you_mean(name, scope.names(), listing="values in sight:"),
        )

    # -------------------------------------------------------- objects and names

    def _object(self, expr: syntax.ObjectOf, scope: Scope) -> Value | None:
        fields: dict[str, Value] = {}
        complete = True
        for pair in expr.pairs:
            key: str | None
            if isinstance(pair.key, syntax.Name):
                key = pair.key.text
            else:
                text = self._string(pair.key, scope)
                key = text.data if text is not None and isinstance(text.data, str) else None
            value = self.evaluate(pair.value, scope)
            if key is None or value is None:
                complete = False
            elif key in fields:
                self.diags.report("BC106", f"`{key}` stands twice in this object", at=pair.key.span)
                complete = False
            else:
                fields[key] = value
        return Value(data=Object(fields=fields), span=expr.span) if complete else None

    def _reference(self, expr: syntax.Reference, scope: Scope) -> Value | None:
        name, trailers = expr.name, expr.trailers
        binding = scope.find(name.text)
        if binding is None:
            if trailers and isinstance(trailers[0], syntax.Arguments):
                called = self._call(name, trailers[0], scope)
                return self._follow(called, trailers[1:], expr.span, scope) if called else None
            if trailers:
                self._unbound(name.text, name.span, scope)
                return None
            return Value(data=Word(name=name.text), span=expr.span)
        bound = binding.value
        if isinstance(bound, Module):
            return self._imported(name, bound, trailers, expr.span, scope)
        if bound is None:
            return None
        value = Value(data=bound.data, span=expr.span)
        return self._follow(value, trailers, expr.span, scope)

    def _imported(
        self,
        alias: syntax.Name,
        module: Module,
        trailers: tuple[syntax.Trailer, ...],
        span: Span,
        scope: Scope,
    ) -> Value | None:
        if not trailers or not isinstance(trailers[0], syntax.Member):
            message = f"`{alias.text}` is an imported file, not a value"
            self.diags.report("BC104", message, at=alias.span, help=f"write `{alias.text}.name`")
            return None
        member = trailers[0].name
        binding = module.bindings.get(member.text)
        if binding is not None:
            scope.usage.used.add(binding.span)
            if not isinstance(binding.value, Value):
                return None
            value = Value(data=binding.value.data, span=span)
            return self._follow(value, trailers[1:], span, scope)
        if member.text in module.declared and len(trailers) == 1:
            return Value(data=Word(name=member.text), span=span)
        self.diags.report(
            "BC101",
            f"`{alias.text}` declares nothing named `{member.text}`",
            at=member.span,
            help=did_you_mean(member.text, {*module.bindings, *module.declared}, listing="it has"),
        )
        return None

    def _follow(self, value: Value, trailers: tuple[syntax.Trailer, ...], span: Span, scope: Scope) -> Value | None:
        """Apply ``.name``, ``[0]`` and ``[*]`` one after the other."""
        for position, trailer in enumerate(trailers):
            followed: Value | None = None
            match trailer:
                case syntax.Member():
                    followed = self._member(value, trailer)
                case syntax.Index():
                    followed = self._item(value, trailer, scope)
                case syntax.Splat():
                    rest = trailers[position + 1 :]
                    return self._every(value, trailer, rest, span, scope)
                case syntax.Arguments():
                    message = f"{describe(value)} cannot be called"
                    self.diags.report("BC104", message, at=trailer.span)
            if followed is None:
                return None
            value = Value(data=followed.data, span=span)
        return value

    def _member(self, value: Value, trailer: syntax.Member) -> Value | None:
        if not isinstance(value.data, Object):
            message = f"{describe(value)} has no fields, so no `{trailer.name.text}`"
            self.diags.report("BC104", message, at=trailer.span)
            return None
        fields = value.data.fields
        if trailer.name.text not in fields:
            self.diags.report(
                "BC101",
                f"this object has no field `{trailer.name.text}`",
                at=trailer.name.span,
                help=did_you_mean(trailer.name.text, fields, listing="it has"),
            )
            return None
        return fields[trailer.name.text]

    def _item(self, value: Value, trailer: syntax.Index, scope: Scope) -> Value | None:
        position = self.evaluate(trailer.position, scope)
        if position is None:
            return None
        if isinstance(value.data, Object) and isinstance(position.data, str):
            name = syntax.Name(text=position.data, span=position.span)
            return self._member(value, syntax.Member(name=name, span=trailer.span))
        items = value.data if isinstance(value.data, tuple) else None
        index = whole_number(position)
        if items is None or index is None:
            message = f"cannot take item {describe(position)} of {describe(value)}"
            self.diags.report("BC104", message, at=trailer.span)
            return None
        if not 0 <= index < len(items):
            message = f"no item {index} in a list of {len(items)}"
            self.diags.report("BC109", message, at=trailer.span, help="positions count from 0")
            return None
        return items[index]

    def _every(
        self,
        value: Value,
        splat: syntax.Splat,
        rest: tuple[syntax.Trailer, ...],
        span: Span,
        scope: Scope,
    ) -> Value | None:
        if not isinstance(value.data, tuple):
            self.diags.report("BC104", f"`[*]` needs a list, found {describe(value)}", at=splat.span)
            return None
        items: list[Value] = []
        for item in value.data:
            followed = self._follow(item, rest, span, scope)
            if followed is None:
                return None
            items.append(followed)
        return Value(data=tuple(items), span=span)

    # -------------------------------------------------------------------- calls

    def _call(self, name: syntax.Name, arguments: syntax.Arguments, scope: Scope) -> Value | None:
        positional: list[Value] = []
        named: dict[str, Value] = {}
        complete = True
        for argument in arguments.items:
            value = self.evaluate(argument.value, scope)
            if value is None:
                complete = False
            elif argument.name is None:
                positional.append(value)
            elif argument.name.text in named:
                message = f"`{argument.name.text}` is given twice"
                self.diags.report("BC106", message, at=argument.name.span)
                complete = False
            else:
                named[argument.name.text] = value
        if not complete:
            return None
        call = Call(name=name.text, positional=tuple(positional), named=named, name_span=name.span)
        span = name.span.to(arguments.span)
        if name.text == "env":
            return self._env(call, span)
        if name.text == "secret":
            return self._secret(call, span)
        return Value(data=call, span=span)

    def _env(self, call: Call, span: Span) -> Value | None:
        arguments = call.positional
        if call.named or not 1 <= len(arguments) <= 2 or not isinstance(arguments[0].data, str):
            help_ = 'write `env("NAME")` or `env("NAME", default)`'
            self.diags.report("BC104", "`env` takes a name and a default", at=span, help=help_)
            return None
        variable = arguments[0].data
        default = arguments[1] if len(arguments) == 2 else None
        if variable not in self.environ:
            if default is not None:
                return Value(data=default.data, span=span)
            message = f"the environment variable `{variable}` is not set"
            help_ = f'set it, or give a default: `env("{variable}", ...)`'
            self.diags.report("BC108", message, at=span, help=help_)
            return None
        text = self.environ[variable]
        if default is None or not isinstance(default.data, Quantity | bool):
            return self._bounded_text(text, span)
        data = typed_text(text, like=default.data)
        if data is None:
            message = f'`{variable}` is "{shorten(text)}", which is not like its default, {describe(default)}'
            self.diags.report("BC104", message, at=span)
            return None
        return Value(data=data, span=span)

    def _secret(self, call: Call, span: Span) -> Value | None:
        arguments = call.positional
        if call.named or len(arguments) != 1 or not isinstance(arguments[0].data, str):
            help_ = 'write `secret("NAME")`: the runtime looks the value up'
            self.diags.report("BC104", "`secret` takes the name of a secret", at=span, help=help_)
            return None
        return Value(data=Secret(name=arguments[0].data), span=span)

    # ---------------------------------------------------------------- operators

    def _binary(self, expr: syntax.Binary, scope: Scope) -> Value | None:
        values = [self.evaluate(operand, scope) for operand in expr.operands]
        if self._division_by_unit(expr, values):
            return None
        result: Value | None = None
        for position, value in enumerate(values):
            if value is None:
                return None
            if isinstance(value.data, Word):
                self._no_operand(value.data.name, value.span, scope)
                return None
            if result is None:
                result = value
                continue
            operator = expr.operators[position - 1]
            result = combine(operator, result, value, self.diags)
            if result is None:
                return None
        return result

    def _division_by_unit(self, expr: syntax.Binary, values: list[Value | None]) -> bool:
        """Recognise ``120/min``, which means ``120rpm``."""
        number, word = values[0], values[-1]
        if expr.operators != ("/",) or number is None or word is None:
            return False
        if not isinstance(number.data, Quantity) or not isinstance(word.data, Word):
            return False
        unit = per_time_unit(word.data.name)
        if unit is None or number.data.unit != PLAIN:
            return False
        message = f"`{number.data}/{word.data.name}` divides by a name; it is not a rate"
        self.diags.report("BC104", message, at=expr.span, help=f"write `{number.data}{unit}`")
        return True

    def _no_operand(self, name: str, span: Span, scope: Scope) -> None:
        head, _, tail = name.partition("-")
        if tail and head in scope.names():
            message = f"no value named `{name}`: names may contain `-`"
            help_ = f"a subtraction needs spaces: `{head} - {tail}`"
            self.diags.report("BC101", message, at=span, help=help_)
            return
        self._unbound(name, span, scope)


def whole_number(value: Value) -> int | None:
    """Return the integer that a value is, if it is a plain one."""
    data = value.data
    if isinstance(data, Quantity) and data.unit == PLAIN and data.number.denominator == 1:
        return data.number.numerator
    return None


def typed_text(text: str, *, like: Quantity | bool) -> Data:
    """Read a text from outside as a value like ``like``; None if it is not."""
    if isinstance(like, bool):
        return {"true": True, "false": False}.get(text.strip())
    if not QUANTITY_TEXT.fullmatch(text.strip()):
        return None
    quantity = parse_quantity(text.strip())
    if isinstance(quantity, Quantity) and quantity.dimension == like.dimension:
        return quantity
    return None
