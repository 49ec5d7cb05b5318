"""Where not all load fits and the spec says so, apps with the highest priority lose theirs first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest

from blockc.diag import Diagnostics
from blockc.place import Placement, PlaceProblem, PlaceRule, place
from blockc.place.cells import Views
from blockc.place.evaluate import evaluate
from blockc.place.loads import merged, with_served
from blockc.place.problem import PlaceLoad, PlacePart
from blockc.place.traffic.flat import Flat
from blockc.place.traffic.greedy import multi_start
from blockc.place.traffic.packing import Packing
from blockc.place.traffic.shed import fits, served_parts
from blockc.place.traffic.units import packing_of
from tests.place.loads import loaded
from tests.place.problems import span


def part(app: str, priority: int, rate: float, *, tpot_ms: int | None = 50) -> PlacePart:
    return PlacePart(
        app=app, priority=priority, rate_rps=Fraction(rate).limit_denominator(1000), prompt_tokens=512,
        output_tokens=128, tpot_s=None if tpot_ms is None else Fraction(tpot_ms, 1000), span=span(ord(app[0])),
    )  # fmt: skip


def fleet(*loads: Sequence[PlacePart], nodes: tuple[int, ...] = (1,), sheds: bool = True) -> PlaceProblem:
    """Fine-tunes of one base, each with the load of some apps."""
    given: list[PlaceLoad | None] = [merged(parts) for parts in loads]
    sizes = [14.0, *(1.0 for _ in loads)]
    paths = [(0, number + 1) for number in range(len(loads))]
    return replace(loaded(sizes, paths, given, nodes=nodes, link=None), sheds=sheds)


def placed(given: PlaceProblem) -> tuple[Placement | None, list[str]]:
    diags = Diagnostics()
    return place(given, diags=diags), [item.code.id for item in diags if item.code.id != "BC403"]


def test_loads_of_apps_add_up() -> None:
    load = merged([part("a", 0, 1), part("b", 1, 3, tpot_ms=20)])
    assert (load.rate_rps, load.prompt_tokens, load.tpot_s) == (4, 512, Fraction(1, 50))
    given = fleet(load.parts)
    half = with_served(given, {"b": Fraction(1, 2)}).chains[0].load
    assert half is not None
    assert half.rate_rps == Fraction(5, 2)
    none = with_served(given, {"b": Fraction(0)}).chains[0].load
    assert none is not None
    assert (none.rate_rps, none.tpot_s) == (1, Fraction(1, 20)), "who is served nothing asks for nothing"
    assert with_served(given, {"a": Fraction(0), "b": Fraction(0)}).chains[0].load is None


def test_the_highest_priority_loses_first_and_equals_lose_equally() -> None:
    given = fleet([part("a", 0, 3)], [part("b", 1, 3), part("c", 2, 6)], [part("d", 2, 4)])
    placement, codes = placed(given)
    assert placement is not None
    assert codes == ["BC405"]
    served = placement.served
    assert set(served) == {"c", "d"}
    assert served["c"] == served["d"] < 1
    assert evaluate(given, placement) == ()
    refused, codes = placed(replace(given, sheds=False))
    assert refused is None
    assert codes == ["BC402"]


@pytest.mark.parametrize(("sheds", "advised"), [(False, True), (None, False)])
def test_leaving_load_out_is_advised_where_it_can_be(sheds: bool | None, advised: bool) -> None:
    given = fleet([part("a", 0, 3)], [part("b", 1, 3), part("c", 2, 6)], [part("d", 2, 4)])
    diags = Diagnostics()
    assert place(replace(given, sheds=sheds), diags=diags) is None
    assert any("with `overload = shed`" in (item.help or "") for item in diags) == advised


def test_what_is_far_too_much_takes_all_of_the_highest_and_part_of_the_next() -> None:
    given = fleet([part("a", 0, 4)], [part("b", 1, 60), part("c", 2, 1)])
    placement, _ = placed(given)
    assert placement is not None
    assert placement.served["c"] == 0 < placement.served["b"] < 1
    assert "a" not in placement.served
    # A hundredth more does not fit.
    more = {**placement.served, "b": placement.served["b"] + Fraction(1, 100)}
    assert multi_start(packing_of(Views(problem=with_served(given, more))), 6) is None


def test_the_warning_names_each_app_and_what_it_has() -> None:
    diags = Diagnostics()
    given = fleet([part("a", 0, 4)], [part("b", 1, 60), part("c", 2, 1)])
    placement = place(given, diags=diags)
    assert placement is not None
    (item,) = [item for item in diags if item.code.id == "BC405"]
    assert item.message == "2 of 3 apps have no place for all of their load"
    assert item.primary is not None
    assert item.primary.span == span(ord("c"))
    assert "`c`, priority 2: 0% of 1 rps" in item.notes
    assert any(note.startswith("`b`, priority 1: ") and note.endswith("% of 60 rps") for note in item.notes)


def test_where_less_load_does_not_help_the_spec_is_refused() -> None:
    rule = PlaceRule(kind="nodes", chains=(0,), count=3, text="a on 3 nodes")
    placement, codes = placed(replace(fleet([part("a", 0, 40)], nodes=(1, 1)), rules=(rule,)))
    assert placement is None
    assert codes == ["BC402"]
    late, codes = placed(fleet([part("a", 0, 40, tpot_ms=5)]))
    assert late is None
    assert codes == ["BC501"]


def test_all_load_that_fits_is_served() -> None:
    placement, codes = placed(fleet([part("a", 0, 1)], [part("b", 5, 1)]))
    assert placement is not None
    assert placement.served == {}
    assert codes == []


@pytest.mark.parametrize(
    "served",
    [
        {"c": Fraction(1, 2)},
        {"b": Fraction(1, 2)},
        {"b": Fraction(1, 2), "c": Fraction(1, 2), "d": Fraction(1, 2)},
        {"c": Fraction(1, 2), "d": Fraction(1, 4)},
        {"c": Fraction(3, 2), "d": Fraction(3, 2)},
        {"x": Fraction(1, 2)},
    ],
)
def test_the_checker_refuses_unfair_parts(served: dict[str, Fraction]) -> None:
    given = fleet([part("a", 0, 3)], [part("b", 1, 3), part("c", 2, 6)], [part("d", 2, 4)])
    placement, _ = placed(given)
    assert placement is not None
    assert evaluate(given, replace(placement, served=served))
    assert evaluate(replace(given, sheds=False), placement)
    assert evaluate(given, replace(placement, served={})), "all of it is too much"


def feasible(packing: Packing) -> bool:
    outcome = Flat(packing).run(units=5.0, seed=7, presolve=False)
    assert outcome.cells is not None or outcome.infeasible
    return outcome.cells is not None


@pytest.mark.parametrize("seed", range(6))
def test_a_small_fleet_loses_what_trying_all_finds(seed: int) -> None:
    """By the exact model, tenth by tenth: what is served is no less, and what is not could not all be."""
    rates = [(3, 5, 4), (9, 2, 8), (1, 9, 9), (6, 6, 6), (12, 1, 1), (2, 3, 14)][seed]
    given = fleet(
        *([part(name, number % 3, rate)] for number, (name, rate) in enumerate(zip("abc", rates, strict=True)))
    )
    served = served_parts(given, lambda less: fits(Views(problem=less))) or {}
    wanted: dict[str, Fraction] = {}
    for app, tenths in ((app, tenths) for app in "cba" for tenths in range(9, -1, -1)):
        wanted = {**{done: Fraction(0) for done in "cba"[: "cba".index(app)]}, app: Fraction(tenths, 10)}
        if feasible(packing_of(Views(problem=with_served(given, wanted)))):
            break
    last = min(wanted)
    assert all(served.get(app, Fraction(1)) >= part_ for app, part_ in wanted.items())
    assert served.get(last, Fraction(1)) <= wanted[last] + Fraction(1, 10)
    assert min(served) == last
