"""Units and exact quantities.

In: the text of a number with a unit (``16GiB``). Out: a :class:`Quantity`, exact, that remembers
the unit it was written in and prints itself back in it. Invariant: no floating point anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from blockc.spec.suggest import nearest

Dimension: TypeAlias = tuple[int, int, int, int, int]
"""Exponents of byte, second, token, request, floating-point operation."""

NUMBER: Dimension = (0, 0, 0, 0, 0)
BYTES: Dimension = (1, 0, 0, 0, 0)
DURATION: Dimension = (0, 1, 0, 0, 0)
TOKENS: Dimension = (0, 0, 1, 0, 0)
REQUEST_RATE: Dimension = (0, -1, 0, 1, 0)
TOKEN_RATE: Dimension = (0, -1, 1, 0, 0)
BANDWIDTH: Dimension = (1, -1, 0, 0, 0)
COMPUTE: Dimension = (0, -1, 0, 0, 1)
PRICE: Dimension = (0, -1, 0, 0, 0)  # of money, which has no unit

MAX_DIGITS = 60
"""Longer numbers are refused: no spec needs them, and work on them is unbounded."""

QUANTITY_TEXT = re.compile(r"[0-9][0-9_]*(?:\.[0-9]+)?(?:%|[A-Za-z][A-Za-z0-9_]*(?:/[a-z]+)?)?")
"""A number from outside of a spec, such as the value of ``--var``."""

_NUMBER = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?)(.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit: one of it is ``factor`` base units of its dimension (B, s, tok, request, FLOP)."""

    symbol: str
    dimension: Dimension
    factor: Fraction


_NAMES: dict[Dimension, tuple[str, str]] = {
    NUMBER: ("number", "2"),
    BYTES: ("size", "16GiB"),
    DURATION: ("duration", "500ms"),
    TOKENS: ("number of tokens", "256tok"),
    REQUEST_RATE: ("rate", "8rps"),
    TOKEN_RATE: ("token rate", "4Ktok/s"),
    BANDWIDTH: ("bandwidth", "100Gbps"),
    COMPUTE: ("compute rate", "90TFLOPS"),
    PRICE: ("price", "2.50 / 1h"),
}


def dimension_name(dimension: Dimension) -> str:
    """Return such as ``duration``; a made-up dimension is spelled out, such as ``B*s^2``."""
    if dimension in _NAMES:
        return _NAMES[dimension][0]
    symbols = zip(("B", "s", "tok", "request", "FLOP"), dimension, strict=True)
    return "*".join(f"{s}^{e}" if e != 1 else s for s, e in symbols if e)


def example_of(dimension: Dimension) -> str | None:
    """Return a value as one might write it, such as ``500ms``."""
    return _NAMES[dimension][1] if dimension in _NAMES else None


def _units() -> dict[str, Unit]:
    units = [Unit(symbol="", dimension=NUMBER, factor=Fraction(1))]

    def add(dimension: Dimension, **factors: Fraction | int) -> None:
        for symbol, factor in factors.items():
            name = symbol.replace("_per_s", "/s").replace("percent", "%")
            units.append(Unit(symbol=name, dimension=dimension, factor=Fraction(factor)))

    sizes = {"B": 1} | {f"{p}B": 1000 ** (i + 1) for i, p in enumerate("KMGT")}
    sizes |= {f"{p}iB": 1024 ** (i + 1) for i, p in enumerate("KMGT")}
    tokens = {"tok": 1, "Ktok": 10**3, "Mtok": 10**6}
    add(NUMBER, percent=Fraction(1, 100))
    add(BYTES, **sizes)
    add(BANDWIDTH, **{f"{symbol}_per_s": factor for symbol, factor in sizes.items()})
    add(BANDWIDTH, **{f"{p}bps": Fraction(10 ** (3 * (i + 1)), 8) for i, p in enumerate("KMGT")})
    add(DURATION, ns=Fraction(1, 10**9), us=Fraction(1, 10**6), ms=Fraction(1, 1000))
    add(DURATION, s=1, min=60, h=3600)
    add(REQUEST_RATE, rps=1, rpm=Fraction(1, 60))
    add(TOKENS, **tokens)
    add(TOKEN_RATE, **{f"{symbol}_per_s": factor for symbol, factor in tokens.items()})
    add(COMPUTE, GFLOPS=10**9, TFLOPS=10**12, PFLOPS=10**15)
    return {unit.symbol: unit for unit in units}


UNITS = _units()
PLAIN = UNITS[""]

_AMBIGUOUS: dict[str, tuple[str, ...]] = {
    "K": ("KB", "KiB", "Ktok"),
    "k": ("KB", "KiB", "Ktok"),
    "M": ("MB", "MiB", "Mtok"),
    "G": ("GB", "GiB"),
    "g": ("GB", "GiB"),
    "T": ("TB", "TiB"),
    "m": ("ms", "min"),
    "Kb": ("KB", "KiB"),
    "Mb": ("MB", "MiB"),
    "Gb": ("GB", "GiB"),
    "Tb": ("TB", "TiB"),
    "Gi": ("GiB", "GB"),
    "Mi": ("MiB", "MB"),
    "Ki": ("KiB", "KB"),
    "Mbit": ("MB", "Mbps"),
    "Gbit": ("GB", "Gbps"),
}

_MONEY = {"usd", "eur", "gbp", "chf", "cny", "jpy", "dollar", "dollars", "euro", "euros", "cent", "cents"}
_SYNONYMS: dict[str, str] = {
    "b": "B",
    "bytes": "B",
    "byte": "B",
    "\u00b5s": "us",
    "\u03bcs": "us",
    "usec": "us",
    "msec": "ms",
    "sec": "s",
    "secs": "s",
    "second": "s",
    "seconds": "s",
    "mins": "min",
    "minute": "min",
    "minutes": "min",
    "hr": "h",
    "hour": "h",
    "hours": "h",
    "req/s": "rps",
    "reqs/s": "rps",
    "qps": "rps",
    "req/min": "rpm",
    "reqs/min": "rpm",
    "qpm": "rpm",
    "token": "tok",
    "tokens": "tok",
    "tokens/s": "tok/s",
    "token/s": "tok/s",
    "toks": "tok",
    "tps": "tok/s",
    "kt": "Ktok",
    "Gb/s": "Gbps",
    "Mb/s": "Mbps",
    "Gbit/s": "Gbps",
    "pct": "%",
    "percent": "%",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """An exact amount: ``number`` in base units of ``unit.dimension``, written in ``unit``."""

    number: Fraction
    unit: Unit

    @property
    def dimension(self) -> Dimension:
        """What kind of amount it is."""
        return self.unit.dimension

    def __str__(self) -> str:
        return f"{format_number(self.number / self.unit.factor)}{self.unit.symbol}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitProblem:
    """Why a text is no quantity: a diagnostic's code, message and help."""

    code: str
    message: str
    help: str


def format_number(number: Fraction) -> str:
    """Return a number exactly where decimals can say it, else rounded to six significant digits."""
    if number.denominator == 1:
        return str(number.numerator)
    places = 0
    scaled = number
    while scaled.denominator != 1 and places < 12:
        scaled *= 10
        places += 1
    if scaled.denominator == 1:
        digits = str(abs(scaled.numerator)).rjust(places + 1, "0")
        sign = "-" if number < 0 else ""
        return f"{sign}{digits[:-places]}.{digits[-places:]}"
    return f"{number.numerator}/{number.denominator}"


def parse_quantity(text: str) -> Quantity | UnitProblem:
    """Read ``16GiB``, ``99%`` or ``2``. The text matches the grammar's QUANTITY or NUMBER."""
    match = _NUMBER.fullmatch(text)
    assert match is not None, "the grammar lets only numbers through"
    digits, symbol = match.groups()
    digits = digits.replace("_", "")
    if len(digits) > MAX_DIGITS:
        return UnitProblem(
            code="BC109",
            message=f"a number of {len(digits)} digits",
            help=f"numbers have at most {MAX_DIGITS} digits",
        )
    unit = UNITS.get(symbol)
    if unit is None:
        return _unknown_unit(digits, symbol)
    return Quantity(number=Fraction(digits) * unit.factor, unit=unit)


def _unknown_unit(digits: str, symbol: str) -> UnitProblem:
    if symbol in _AMBIGUOUS:
        choices = [f"`{digits}{choice}`" for choice in _AMBIGUOUS[symbol]]
        return UnitProblem(
            code="BC105",
            message=f"`{digits}{symbol}` could mean {', '.join(choices[:-1])} or {choices[-1]}",
            help=f"write {' or '.join(choices)}",
        )
    message = f"no unit `{symbol}`"
    if symbol.lower().partition("/")[0] in _MONEY:
        return UnitProblem(code="BC104", message=message, help=f"money has no unit: write `{digits} / 1h`")
    if re.fullmatch(r"[eE][0-9]+", symbol):
        zeros = int(symbol[1:]) if len(symbol) <= 3 else MAX_DIGITS
        exact = Fraction(digits) * 10**zeros
        written = format_number(exact) if zeros <= 18 else "the digits"
        return UnitProblem(code="BC104", message=message, help=f"exponents are not read; write `{written}`")
    known = _SYNONYMS.get(symbol) or _SYNONYMS.get(symbol.lower())
    if known is None:
        known = next((name for name in UNITS if name and name.lower() == symbol.lower()), None)
    if known is None:
        known = nearest(symbol, tuple(name for name in UNITS if name))
    if known is not None:
        return UnitProblem(code="BC104", message=message, help=f"write `{digits}{known}`")
    return UnitProblem(
        code="BC104",
        message=message,
        help="units are " + " ".join(name for name in UNITS if name and "/" not in name),
    )


def per_time_unit(symbol: str) -> str | None:
    """Return the rate that ``120/min`` means: ``rpm``."""
    return {"s": "rps", "sec": "rps", "second": "rps", "min": "rpm", "minute": "rpm"}.get(symbol)


def unit_for(dimension: Dimension, *, preferred: tuple[Unit, ...]) -> Unit:
    """Return the unit to print a computed quantity in: one that was written, else the base unit."""
    for unit in preferred:
        if unit.dimension == dimension:
            return unit
    if dimension == PRICE:
        return Unit(symbol=" / 1h", dimension=PRICE, factor=Fraction(1, 3600))
    for unit in UNITS.values():
        if unit.dimension == dimension and unit.factor == 1:
            return unit
    return Unit(symbol=dimension_name(dimension), dimension=dimension, factor=Fraction(1))
