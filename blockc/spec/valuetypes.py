"""The types of attributes whose values are numbers, words, strings and lists.

In: an evaluated value. Out: plain data in base units, or None after a report.
"""

# ruff: noqa: D102 - `expects` and `convert` are documented once, in ValueType
from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from blockc.spec.context import Context, ValueType
from blockc.spec.secrets import looks_secret, report_secret
from blockc.spec.suggest import did_you_mean
from blockc.spec.units import (
    BYTES,
    DURATION,
    NUMBER,
    PRICE,
    REQUEST_RATE,
    TOKEN_RATE,
    TOKENS,
    Dimension,
    Quantity,
    dimension_name,
    example_of,
    format_number,
)
from blockc.spec.values import Range, Value, Word, describe


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """A quantity of one dimension. Becomes a Fraction in base units, or an int if ``whole``."""

    dimension: Dimension
    whole: bool = False
    plain_too: bool = False  # a bare number is clear enough: `max_model_len = 2048`
    above: Fraction | None = None
    least: Fraction | None = None
    most: Fraction | None = None

    @property
    def expects(self) -> str:
        if self.dimension == NUMBER and self.most == 1 and not self.whole:
            return "a share such as `2%`"
        if self.dimension == NUMBER:
            return "a whole number" if self.whole else "a number"
        return f"a {dimension_name(self.dimension)} such as `{example_of(self.dimension)}`"

    def convert(self, value: Value, context: Context) -> int | Fraction | None:
        data = value.data
        plain = isinstance(data, Quantity) and data.dimension == NUMBER and data.unit.symbol == ""
        fits = isinstance(data, Quantity) and data.dimension == self.dimension
        if not isinstance(data, Quantity) or not (fits or (plain and self.plain_too)):
            context.wrong_type(self.expects, value, help_=self._fitting(value))
            return None
        number = data.number
        if self.above is not None and number <= self.above:
            message = f"must be more than {self._printed(self.above)}, found `{data}`"
            context.out_of_range(message, value)
            return None
        if self.least is not None and number < self.least:
            message = f"must be at least {self._printed(self.least)}, found `{data}`"
            context.out_of_range(message, value)
            return None
        if self.most is not None and number > self.most:
            context.out_of_range(f"must be at most {self._printed(self.most)}, found `{data}`", value)
            return None
        if not self.whole:
            return number
        if number.denominator != 1:
            context.out_of_range(f"must be a whole number, found `{data}`", value)
            return None
        return number.numerator

    def _printed(self, number: Fraction) -> str:
        return f"{format_number(number)}{_BASE_UNIT.get(self.dimension, '')}"

    def _fitting(self, value: Value) -> str | None:
        data = value.data
        if isinstance(data, str) and self.dimension != NUMBER:
            return f"quantities are written without quotes: `{example_of(self.dimension)}`"
        if not isinstance(data, Quantity):
            return None
        written = format_number(data.number / data.unit.factor)
        if self.dimension == BYTES and data.dimension == NUMBER:
            return f"write `{written}GiB`, `{written}GB` or `{written}B`"
        if data.dimension == BYTES:
            return None  # the number means something else altogether
        same_number = _FITTING_UNIT.get(self.dimension)
        return f"write `{written}{same_number}`" if same_number is not None else None


_BASE_UNIT = {BYTES: "B", DURATION: "s", TOKENS: "tok", REQUEST_RATE: "rps", TOKEN_RATE: "tok/s"}
_FITTING_UNIT = {
    BYTES: "GiB",
    DURATION: "s",
    TOKENS: "tok",
    REQUEST_RATE: "rps",
    TOKEN_RATE: "tok/s",
    NUMBER: "",
    PRICE: " / 1h",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A word of a setting; ``meaning`` is what it becomes. Exactly one status holds."""

    word: str
    meaning: str
    in_effect: bool = True
    supported: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class OneOf:
    """One of some words. Becomes the word's meaning. ``beside``: examples of what else may stand here, for messages."""

    choices: tuple[Choice, ...]
    noun: str = "value"
    beside: tuple[str, ...] = ()

    @property
    def expects(self) -> str:
        words = [f"`{word}`" for word in (*self._words, *self.beside)]
        return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]

    @property
    def _words(self) -> list[str]:
        return [choice.word for choice in self.choices if choice.supported]

    def convert(self, value: Value, context: Context) -> str | None:
        data = value.data
        if not isinstance(data, Word):
            quoted = isinstance(data, str) and data in (*self._words, *self.beside)
            help_ = f"write `{data}`, without quotes" if quoted else None
            context.wrong_type(self.expects, value, help_=help_)
            return None
        choice = next((choice for choice in self.choices if choice.word == data.name), None)
        if choice is None:
            help_ = did_you_mean(data.name, [*self._words, *(word.partition("(")[0] for word in self.beside)])
            context.out_of_range(f"no {self.noun} `{data.name}`; expected {self.expects}", value, help_=help_)
            return None
        if not choice.supported:
            message = f"{context.where}: `{data.name}` is not supported yet"
            help_ = f"supported are {self.expects}"
            context.diags.report("BC208", message, at=value.span, help=help_)
            return None
        if not choice.in_effect:
            context.not_in_effect(f"{context.where}: `{data.name}`", value.span)
        return choice.meaning


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A string. Becomes a str."""

    expects: str = "a string"

    def convert(self, value: Value, context: Context) -> str | None:
        if not isinstance(value.data, str):
            help_ = None
            if isinstance(value.data, Word):
                help_ = f'a string is written in quotes: "{value.data.name}"'
            context.wrong_type(self.expects, value, help_=help_)
            return None
        if looks_secret(value.data):
            report_secret(value, context)
            return None
        if any(ord(character) < 32 or ord(character) == 127 for character in value.data):
            context.out_of_range("a control character in a string", value)
            return None
        return value.data


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeOfLayers:
    """``24..31``. Becomes a pair."""

    expects: str = "a range such as `24..31`"

    def convert(self, value: Value, context: Context) -> tuple[int, int] | None:
        if not isinstance(value.data, Range):
            context.wrong_type(self.expects, value)
            return None
        if not 0 <= value.data.first <= value.data.last:
            context.out_of_range(f"{describe(value)} is empty or negative", value)
            return None
        return value.data.first, value.data.last


@dataclass(frozen=True, slots=True, kw_only=True)
class Many:
    """A list. Becomes a tuple."""

    of: ValueType

    @property
    def expects(self) -> str:
        return f"a list of {self.of.expects}"

    def convert(self, value: Value, context: Context) -> tuple[object, ...] | None:
        if not isinstance(value.data, tuple):
            context.wrong_type(self.expects, value, help_="write it in brackets: `[...]`")
            return None
        items = [self.of.convert(item, context) for item in value.data]
        return None if any(item is None for item in items) else tuple(items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """``true`` or ``false``. Becomes a bool."""

    expects: str = "`true` or `false`"

    def convert(self, value: Value, context: Context) -> bool | None:
        if not isinstance(value.data, bool):
            context.wrong_type(self.expects, value)
            return None
        return value.data


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentage:
    """A share of something that another attribute gives."""

    of_whole: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """An amount, or a percentage of another one. Becomes an int, or a :class:`Percentage`."""

    of: Amount

    @property
    def expects(self) -> str:
        return f"{self.of.expects} or a share such as `6%`"

    def convert(self, value: Value, context: Context) -> object | None:
        data = value.data
        if not isinstance(data, Quantity) or data.unit.symbol != "%":
            if isinstance(data, Quantity) and data.number == 0 and data.dimension == self.of.dimension:
                return 0
            return self.of.convert(value, context)
        if not 0 <= data.number < 1:
            context.out_of_range(f"must be at least 0% and below 100%, found `{data}`", value)
            return None
        return Percentage(of_whole=data.number)
