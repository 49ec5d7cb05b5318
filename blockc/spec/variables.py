"""``var``: values that a caller may set from outside.

In: a ``var`` statement, and the texts given by ``--var name=text``. Out: its value, of the
declared type.
"""

from __future__ import annotations

from collections.abc import Mapping

from blockc.diag import Span
from blockc.spec import syntax
from blockc.spec.evaluate import Evaluator
from blockc.spec.scope import Scope
from blockc.spec.suggest import did_you_mean
from blockc.spec.units import (
    BYTES,
    DURATION,
    NUMBER,
    QUANTITY_TEXT,
    REQUEST_RATE,
    TOKENS,
    Dimension,
    Quantity,
    UnitProblem,
    example_of,
    parse_quantity,
)
from blockc.spec.values import Value, describe, shorten

_QUANTITIES: dict[str, Dimension] = {
    "number": NUMBER,
    "size": BYTES,
    "duration": DURATION,
    "rate": REQUEST_RATE,
    "tokens": TOKENS,
}
VAR_TYPES = ("string", "path", "bool", *_QUANTITIES)


def variable_value(var: syntax.Var, scope: Scope, evaluator: Evaluator, given: Mapping[str, str]) -> Value | None:
    """Return the value of a variable: what was given, else its default."""
    diags = evaluator.diags
    if var.type.text not in VAR_TYPES:
        help_ = did_you_mean(var.type.text, VAR_TYPES, listing="types are")
        diags.report("BC101", f"no type `{var.type.text}`", at=var.type.span, help=help_)
        return None
    if var.name.text in given:
        return _from_text(given[var.name.text], var, evaluator)
    if var.default is None:
        message = f"the variable `{var.name.text}` has no value"
        help_ = f"give one: `--var {var.name.text}=...`, or a default: `= ...`"
        diags.report("BC108", message, at=var.span, help=help_)
        return None
    value = evaluator.evaluate(var.default, scope)
    if value is None:
        return None
    if not _fits(value, var.type.text):
        if isinstance(value.data, str) and var.type.text not in ("string", "path"):
            return _from_text(value.data, var, evaluator)  # env("N", ...) gives text
        message = f"expected a {var.type.text}, found {describe(value)}"
        diags.report("BC104", message, at=var.default.span, help=_example(var.type.text))
        return None
    return value


def _fits(value: Value, type_: str) -> bool:
    match value.data:
        case str():
            return type_ in ("string", "path")
        case bool():
            return type_ == "bool"
        case Quantity(dimension=dimension):
            return _QUANTITIES.get(type_) == dimension
    return False


def _from_text(text: str, var: syntax.Var, evaluator: Evaluator) -> Value | None:
    span: Span = var.name.span
    type_ = var.type.text
    if type_ in ("string", "path"):
        return Value(data=text, span=span)
    if type_ == "bool" and text in ("true", "false"):
        return Value(data=text == "true", span=span)
    if type_ in _QUANTITIES and QUANTITY_TEXT.fullmatch(text):
        quantity = parse_quantity(text)
        if isinstance(quantity, UnitProblem):
            message = f"`{var.name.text}`: {quantity.message}"
            evaluator.diags.report(quantity.code, message, at=span, help=quantity.help)
            return None
        if quantity.dimension == _QUANTITIES[type_]:
            return Value(data=quantity, span=span)
    message = f'`{var.name.text}` is a {type_}; it was given "{shorten(text)}"'
    evaluator.diags.report("BC104", message, at=span, help=_example(type_))
    return None


def _example(type_: str) -> str | None:
    if type_ == "bool":
        return "write `true` or `false`"
    if type_ in _QUANTITIES:
        return f"such as `{example_of(_QUANTITIES[type_])}`"
    return 'such as "text"'
