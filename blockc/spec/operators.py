"""What the operators do. Exact, typed by dimension, bounded in size.

In: two values. Out: their combination, or None after a report. ``GiB / s`` is a bandwidth, ``6% *
GiB`` a size.
"""

from __future__ import annotations

from fractions import Fraction

from blockc.diag import Diagnostics, Span
from blockc.spec.units import NUMBER, PLAIN, Dimension, Quantity, Unit, example_of, unit_for
from blockc.spec.values import Data, Range, Value, describe

_MAX_BITS = 512  # repeated squaring doubles the digits of a number per `let`
_MAX_ITEMS = 100_000
_COMPARISONS = {"==", "!=", "<", "<=", ">", ">="}
_VERBS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}


def negate(value: Value, operators: tuple[str, ...], span: Span, diags: Diagnostics) -> Value | None:
    """Apply ``-`` and ``!``; ``operators`` stand from the outermost to the innermost."""
    data = value.data
    for operator in reversed(operators):
        if operator == "!" and isinstance(data, bool):
            data = not data
        elif operator == "-" and isinstance(data, Quantity):
            data = Quantity(number=-data.number, unit=data.unit)
        else:
            wanted = "a number" if operator == "-" else "`true` or `false`"
            message = f"`{operator}` needs {wanted}, found {describe(value)}"
            diags.report("BC104", message, at=value.span)
            return None
    return Value(data=data, span=span)


def combine(operator: str, left: Value, right: Value, diags: Diagnostics) -> Value | None:
    """Apply a binary operator."""
    span = left.span.to(right.span) if left.span.file == right.span.file else left.span
    if operator == "..":
        return _range(left, right, span, diags)
    data: Data
    a, b = left.data, right.data
    if operator in ("&&", "||"):
        if not isinstance(a, bool) or not isinstance(b, bool):
            _mismatch(operator, left, right, diags, "`true` or `false` on both sides")
            return None
        data = (a and b) if operator == "&&" else (a or b)
    elif operator in _COMPARISONS:
        compared = _compare(operator, left, right, diags)
        if compared is None:
            return None
        data = compared
    elif isinstance(a, Quantity) and isinstance(b, Quantity):
        quantity = _arithmetic(operator, left, right, a, b, diags)
        if quantity is None:
            return None
        data = quantity
    elif operator == "+" and isinstance(a, tuple) and isinstance(b, tuple):
        if len(a) + len(b) > _MAX_ITEMS:
            diags.report("BC109", f"a list of more than {_MAX_ITEMS} items", at=span)
            return None
        data = a + b
    elif operator == "+" and isinstance(a, str) and isinstance(b, str):
        help_ = 'join strings by interpolation: "${a}${b}"'
        diags.report("BC104", "`+` does not join strings", at=span, help=help_)
        return None
    else:
        _mismatch(operator, left, right, diags, "numbers")
        return None
    return Value(data=data, span=span)


def _mismatch(operator: str, left: Value, right: Value, diags: Diagnostics, wanted: str) -> None:
    message = f"`{operator}` needs {wanted}, found {describe(left)} and {describe(right)}"
    diags.report("BC104", message, at=right.span)


def _range(left: Value, right: Value, span: Span, diags: Diagnostics) -> Value | None:
    bounds = []
    for side in (left, right):
        data = side.data
        if not isinstance(data, Quantity) or data.unit != PLAIN or data.number.denominator != 1:
            message = f"a range goes from a whole number to another, found {describe(side)}"
            diags.report("BC104", message, at=side.span)
            return None
        bounds.append(data.number.numerator)
    return Value(data=Range(first=bounds[0], last=bounds[1]), span=span)


def _compare(operator: str, left: Value, right: Value, diags: Diagnostics) -> bool | None:
    a, b = left.data, right.data
    if isinstance(a, Quantity) and isinstance(b, Quantity):
        if a.dimension != b.dimension:
            _mismatch(operator, left, right, diags, "values of one kind")
            return None
        return {
            "==": a.number == b.number,
            "!=": a.number != b.number,
            "<": a.number < b.number,
            "<=": a.number <= b.number,
            ">": a.number > b.number,
            ">=": a.number >= b.number,
        }[operator]
    alike = type(a) is type(b) and isinstance(a, str | bool)
    if operator in ("==", "!=") and alike:
        return (a == b) is (operator == "==")
    _mismatch(operator, left, right, diags, "values of one kind")
    return None


def _arithmetic(
    operator: str, left: Value, right: Value, a: Quantity, b: Quantity, diags: Diagnostics
) -> Quantity | None:
    if operator in "+-":
        if a.dimension != b.dimension:
            example = example_of(a.dimension)
            help_ = f"give both the same unit, such as `{example}`" if example else None
            message = f"cannot {_VERBS[operator]} {describe(left)} and {describe(right)}"
            diags.report("BC104", message, at=right.span, help=help_)
            return None
        number = a.number + b.number if operator == "+" else a.number - b.number
        return _bounded(number, a.unit, left, right, diags)
    if operator == "/" and b.number == 0:
        diags.report("BC109", "division by zero", at=right.span)
        return None
    sign = 1 if operator == "*" else -1
    number = a.number * b.number if operator == "*" else a.number / b.number
    dimension = _combined(a.dimension, b.dimension, sign)
    if any(abs(exponent) > 4 for exponent in dimension):
        _mismatch(operator, left, right, diags, "units that combine")
        return None
    return _bounded(number, _result_unit(dimension, a, b), left, right, diags)


def _result_unit(dimension: Dimension, a: Quantity, b: Quantity) -> Unit:
    if dimension == NUMBER:
        return PLAIN
    return unit_for(dimension, preferred=(a.unit, b.unit))


def _combined(a: Dimension, b: Dimension, sign: int) -> Dimension:
    return (
        a[0] + sign * b[0],
        a[1] + sign * b[1],
        a[2] + sign * b[2],
        a[3] + sign * b[3],
        a[4] + sign * b[4],
    )


def _bounded(number: Fraction, unit: Unit, left: Value, right: Value, diags: Diagnostics) -> Quantity | None:
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > _MAX_BITS:
        diags.report("BC109", "a number of more than 150 digits", at=left.span.to(right.span))
        return None
    return Quantity(number=number, unit=unit)
