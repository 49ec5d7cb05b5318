"""Where not all load fits, models in stages lose theirs by the same order as all others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest

from blockc.diag import Diagnostics
from blockc.place import Placement, PlaceProblem, place
from blockc.place.evaluate import evaluate
from blockc.place.loads import all_parts, with_served
from blockc.place.problem import PlacePart
from tests.place.pipelines import fleet, part

LARGE, SMALL = ("a", [10] * 12), ("x", [10] * 3)


def placed(given: PlaceProblem) -> tuple[Placement | None, list[str]]:
    diags = Diagnostics()
    placement = place(given, diags=diags)
    return placement, [item.code.id for item in diags if item.code.id not in ("BC403", "BC406")]


def shedding(*loads: Sequence[PlacePart], nodes: Sequence[int] = (1, 1, 1)) -> PlaceProblem:
    """The large model in stages, and small ones beside it."""
    models = [LARGE, *((f"x{number}", SMALL[1]) for number in range(1, len(loads)))]
    return replace(fleet(models, loads, nodes=nodes), sheds=True, gap=Fraction(1))


@pytest.mark.parametrize("seed", range(4))
def test_who_loses_is_decided_over_all_apps_together(seed: int) -> None:
    generator = random.Random(seed)
    loads = [
        [
            part(app, generator.choice([1, 2, 10, 40]), priority=generator.randint(0, 3))
            for app in names[: generator.randint(1, 2)]
        ]
        for names in ("ab", "cd", "ef")
    ]
    given = shedding(*loads)
    refused, _ = placed(replace(given, sheds=False))
    placement, codes = placed(given)
    assert placement is not None
    assert evaluate(given, placement) == ()
    assert (codes == []) == (refused is not None) == (not placement.served)
    assert any(instance.stages for instance in placement.instances)
    if placement.served:
        assert codes == ["BC405"]
        level = min(p.priority for p in all_parts(given) if placement.served.get(p.app, 1) < 1)
        more = {
            app: part_ + Fraction(p.priority == level, 100)
            for p in all_parts(given)
            if (app := p.app) in placement.served and (part_ := placement.served[app]) is not None
        }
        again, codes = placed(replace(with_served(given, more), sheds=False))
        assert again is None, "a hundredth more of the next ones does not fit"
        assert codes[-1:] in (["BC402"], ["BC501"])


def test_who_comes_first_gets_devices_that_the_other_would_have_copies_on() -> None:
    """Five devices: a copy of the large model takes two and answers some 3 rps, a small one takes one."""
    both = {"a": [part("a", 6, priority=2)], "b": [part("b", 20, priority=1)]}
    placement, codes = placed(shedding(*both.values(), nodes=(1,) * 5))
    assert placement is not None
    assert codes == ["BC405"]
    assert set(placement.served) == {"a"}
    assert 0 < placement.served["a"] < 1
    assert [bool(own.stages) for own in placement.instances].count(True) == 1
    turned = {"a": [part("a", 6, priority=1)], "b": [part("b", 20, priority=2)]}
    placement, codes = placed(shedding(*turned.values(), nodes=(1,) * 5))
    assert placement is not None
    assert set(placement.served) == {"b"}
    assert 0 < placement.served["b"] < 1
    assert [bool(own.stages) for own in placement.instances].count(True) == 2


def test_what_is_late_by_itself_is_refused_and_not_left_out() -> None:
    late, codes = placed(shedding([part("a", 1, tpot_ms=5)], [part("b", 1)]))
    assert late is None
    assert codes == ["BC501"]
    late, codes = placed(shedding([part("a", 1)], [part("b", 500, tpot_ms=1)]))
    assert late is None
    assert codes == ["BC501"]


def test_where_weights_do_not_fit_nothing_is_left_out() -> None:
    none, codes = placed(shedding([part("a", 1)], [part("b", 1)], nodes=(1, 1)))
    assert none is None
    assert codes == ["BC402"]
