"""What cannot be placed by load is explained: minimal sets of lines, targets out of reach, relaxations that suffice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest

from blockc.diag import Diagnostic, Diagnostics
from blockc.diag.render import render
from blockc.place import PlaceProblem, PlaceRule, place
from blockc.place.cells import Views
from blockc.place.traffic.explain import minimal_core
from blockc.place.traffic.greedy import multi_start
from blockc.place.traffic.relaxed import Line, lines_of, more_devices, packing_with, scaled
from blockc.place.traffic.solve import solve
from blockc.place.traffic.units import packing_of
from tests.place.loads import load, loaded
from tests.place.problems import span


def refused(given: PlaceProblem) -> Diagnostic:
    diags = Diagnostics()
    assert place(given, diags=diags) is None
    (item,) = diags
    return item


def rule(
    kind: str, chains: tuple[int, ...], *, devices: Sequence[int] = (), line: int = 60, count: int = 1
) -> PlaceRule:
    text = f"{kind} {','.join(f'm{chain}' for chain in chains)}"
    return PlaceRule(kind=kind, chains=chains, devices=frozenset(devices), text=text, span=span(line), count=count)  # type: ignore[arg-type]


def three_on(devices: int, *rules: PlaceRule, rate: float = 0.5, tpot_ms: int = 50) -> PlaceProblem:
    return loaded(
        [14.0, 1.0, 1.0, 1.0], [(0, 1), (0, 2), (0, 3)], [load(rate, tpot_ms=tpot_ms)] * 3, nodes=(devices,),
        rules=rules, link=None,
    )  # fmt: skip


CASES = {
    "isolated": three_on(2, *(rule("alone", (chain,), line=60 + chain) for chain in range(3))),
    "pinned": three_on(
        2, rule("pin", (0,), devices=[0]), rule("pin", (1,), devices=[0]), rule("apart", (0, 1), line=70)
    ),
    "loads": three_on(1, rate=9),
    "targets": three_on(1, rate=2.6, tpot_ms=25),
    "replicas": three_on(2, rule("replicas", (0,), count=3)),
    "nodes": three_on(2, rule("nodes", (0,), count=2)),
    "rows": replace(three_on(1, rate=2), max_rows=4, max_rows_span=span(81)),
    "headroom": replace(three_on(1, rate=3), headroom=Fraction(1, 2), headroom_span=span(80)),
    "apart": three_on(2, rule("apart", (0, 1)), rule("apart", (0, 2), line=61), rule("apart", (1, 2), line=62)),
}


def kinds(core: Sequence[Line], given: PlaceProblem) -> list[str]:
    return sorted({given.rules[line.index].kind if line.kind == "rule" else line.kind for line in core})


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("isolated", ["alone", "devices"]),
        ("pinned", ["apart", "pin"]),
        ("loads", ["devices", "rate"]),
        ("targets", ["devices", "rate", "slo"]),
        ("headroom", ["devices", "headroom", "rate"]),
        ("rows", ["devices", "rate", "rows"]),
        ("replicas", ["devices", "replicas"]),
        ("nodes", ["devices", "nodes"]),
        ("apart", ["apart", "devices"]),
    ],
)
def test_cores_are_minimal_and_every_kind_of_line_is_in_one(name: str, wanted: list[str]) -> None:
    given = CASES[name]
    views = Views(problem=given)
    core = minimal_core(views)
    assert kinds(core, given) == wanted
    assert solve(packing_with(views, core), seed=7, limit_s=60, gap=0).cells is None
    for line in core:
        rest = [other for other in core if other is not line]
        assert multi_start(packing_with(views, rest)) is not None or name == "targets", line.text
    item = refused(given)
    assert item.code.id == "BC402"
    assert str(len(core)) in item.message
    shown = {label.span for label in item.secondary} | {item.primary.span if item.primary else None}
    assert shown >= {line.span for line in core[:8]}


def test_two_of_three_lines_suffice_where_two_contradict() -> None:
    """Two tenants have devices of their own on two devices: that the third has, too, is not needed."""
    given = CASES["isolated"]
    core = minimal_core(Views(problem=given))
    assert len([line for line in core if line.kind == "rule"]) == 2
    assert len(lines_of(given)) > len(core)


@pytest.mark.parametrize("name", sorted(CASES))
def test_relaxations_really_suffice(name: str) -> None:
    given = CASES[name]
    help_ = refused(given).help
    assert help_ is not None
    views = Views(problem=given)
    lines = lines_of(given)
    for line in lines:
        if line.kind in ("rule", "headroom", "rows") and f"without `{line.text}`" in help_:
            rest = [other for other in lines if other is not line]
            assert multi_start(packing_with(views, rest)) is not None
    if "1 more device " in help_:
        assert multi_start(packing_of(views.with_devices(more_devices(given, 1)))) is not None
    if name == "loads":
        assert "more device" in help_
        part = int(help_.split(" % or less")[0].split()[-1])
        assert multi_start(packing_of(views.with_problem(scaled(given, Fraction(part, 100))))) is not None
        assert multi_start(packing_of(views.with_problem(scaled(given, Fraction(part + 3, 100))))) is None


def test_a_pace_that_no_device_keeps_names_its_line() -> None:
    item = refused(loaded([30.0], [(0,)], [load(1, tpot_ms=10)], nodes=(1,)))
    assert item.code.id == "BC501"
    assert item.primary is not None
    assert item.primary.span == span(120)
    assert "a token of it is due every 10 ms" in item.message
    assert any("19" in note for note in item.notes)


def test_a_first_token_that_comes_too_late_names_its_line() -> None:
    item = refused(loaded([30.0], [(0,)], [load(1, ttft_ms=60, prompt=4096)], nodes=(1,)))
    assert item.code.id == "BC501"
    assert "first token" in item.message
    assert "by itself" in item.notes[0]


def test_a_pin_to_what_is_too_small_names_its_line() -> None:
    given = loaded([60.0], [(0,)], [load(0.1, tpot_ms=400)], nodes=(2,), rules=(rule("pin", (0,), devices=[1]),))
    small = replace(given.devices[1], memory_bytes=40 * 10**9)
    item = refused(replace(given, devices=(given.devices[0], small)))
    assert item.code.id == "BC402"
    assert item.primary is not None
    assert item.primary.span == span(60)


def test_weights_that_fit_nowhere_are_a_matter_of_bytes() -> None:
    item = refused(loaded([100.0], [(0,)], [load(1)], nodes=(1,)))
    assert item.code.id == "BC401"


def test_the_whole_message() -> None:
    text = render(refused(CASES["loads"]), {}, colour=False)
    assert "lines of the spec cannot hold together" in text
    assert "requests/s of 512 and 128 tokens" in text
