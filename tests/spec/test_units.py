"""Quantities are exact and print back in the unit in which they were written."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockc.spec.suggest import distance, nearest
from blockc.spec.units import (
    UNITS,
    Quantity,
    UnitProblem,
    format_number,
    parse_quantity,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("16GiB", 16 << 30),
        ("16GB", 16 * 10**9),
        ("1KiB", 1024),
        ("500ms", Fraction(1, 2)),
        ("20us", Fraction(1, 50_000)),
        ("2h", 7200),
        ("120rpm", 2),
        ("8Ktok", 8000),
        ("4Ktok/s", 4000),
        ("100Gbps", 12_500_000_000),
        ("300GB/s", 300 * 10**9),
        ("99%", Fraction(99, 100)),
        ("0.1s", Fraction(1, 10)),
        ("1_000", 1000),
        ("90TFLOPS", 90 * 10**12),
    ],
)
def test_units(text: str, number: Fraction | int) -> None:
    quantity = parse_quantity(text)
    assert isinstance(quantity, Quantity)
    assert quantity.number == number


@pytest.mark.parametrize(
    ("text", "code", "help_"),
    [
        ("16G", "BC105", "write `16GB` or `16GiB`"),
        ("16M", "BC105", "`16MB` or `16MiB`"),
        ("10m", "BC105", "write `10ms` or `10min`"),
        ("16gb", "BC104", "write `16GB`"),
        ("16gib", "BC104", "write `16GiB`"),
        ("5sec", "BC104", "write `5s`"),
        ("8req/s", "BC104", "write `8rps`"),
        ("5\u00b5s", "BC104", "write `5us`"),
        ("16GiBs", "BC104", "write `16GiB`"),
        ("1e9", "BC104", "write `1000000000`"),
        ("5parsecs", "BC104", "units are"),
    ],
)
def test_unknown_units_are_explained(text: str, code: str, help_: str) -> None:
    problem = parse_quantity(text)
    assert isinstance(problem, UnitProblem)
    assert problem.code == code
    assert help_ in problem.help


@given(
    st.integers(0, 10**18),
    st.integers(0, 6),
    st.sampled_from(sorted(UNITS)),
)
def test_quantities_print_back_as_written(whole: int, places: int, unit: str) -> None:
    digits = str(whole).rjust(places + 1, "0")
    text = f"{digits[:-places]}.{digits[-places:]}" if places else digits
    quantity = parse_quantity(text + unit)
    assert isinstance(quantity, Quantity)
    again = parse_quantity(str(quantity))
    assert isinstance(again, Quantity)
    assert again.number == quantity.number
    assert again.unit == quantity.unit


def test_numbers_that_decimals_cannot_say_are_fractions() -> None:
    assert format_number(Fraction(1, 3)) == "1/3"
    assert format_number(Fraction(-1, 8)) == "-0.125"


names = st.text(alphabet="abcd_", max_size=8)


@given(names, names)
def test_distance_is_symmetric_and_zero_only_for_equals(a: str, b: str) -> None:
    assert distance(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a == b)


def test_suggestions_are_near_or_absent() -> None:
    assert nearest("acme_suport", ["acme_support", "acme_sql"]) == "acme_support"
    assert nearest("tennant", ["tenant", "policy"]) == "tenant"
    assert nearest("teh", ["the", "tea"]) == "tea"
    assert nearest("zzz", ["tenant", "policy"]) is None
