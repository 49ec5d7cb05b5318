"""Models that are to run in several instances, or on several nodes, whatever they carry."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from blockc.diag import Diagnostics
from blockc.place import PlaceProblem, PlaceRule, place
from blockc.place.cells import Views
from blockc.place.evaluate import evaluate
from blockc.place.traffic.aggregate import aggregate, closed_form
from blockc.place.traffic.flat import least_spent
from blockc.place.traffic.greedy import multi_start
from blockc.place.traffic.improve import improve
from blockc.place.traffic.packing import PackedCell, Packing, devices_of, packing_problem
from blockc.place.traffic.units import packing_of
from tests.place.loads import load, loaded, random_loaded


def rule(kind: str, count: int, chain: int = 0) -> PlaceRule:
    return PlaceRule(kind=kind, chains=(chain,), count=count, text=f"m{chain}, {kind} {count}")  # type: ignore[arg-type]


def small(*rules: PlaceRule, nodes: tuple[int, ...] = (2, 2)) -> PlaceProblem:
    return loaded([14.0, 1.0, 1.0], [(0, 1), (0, 2)], [load(0.5), None], nodes=nodes, rules=rules)


@pytest.mark.parametrize("chain", [0, 1], ids=["loaded", "quiet"])
@pytest.mark.parametrize(("kind", "count"), [("replicas", 2), ("replicas", 3), ("nodes", 2)])
def test_it_runs_in_as_many_places_and_its_route_names_them(kind: str, count: int, chain: int) -> None:
    given = small(rule(kind, count, chain))
    placement = place(given, diags=Diagnostics())
    assert placement is not None
    assert evaluate(given, placement) == ()
    route = placement.routes[chain]
    assert len(route.alternatives) == count == placement.solver.value == placement.solver.bound
    assert len(route.weights) == count
    where = {given.devices[placement.instances[way[0]].devices[0]].node for way in route.alternatives}
    assert len(where) == 2 or kind != "nodes"
    if chain == 1:
        assert max(route.weights) - min(route.weights) < 1e-3, "nothing is expected, so all have the same part"


def test_the_checker_refuses_too_few() -> None:
    once = place(small(), diags=Diagnostics())
    assert once is not None
    assert any("there are 1" in text for text in evaluate(small(rule("replicas", 2)), once))
    together = place(small(rule("replicas", 2), nodes=(2,)), diags=Diagnostics())
    assert together is not None
    assert any("there are 1" in text for text in evaluate(small(rule("nodes", 2), nodes=(2,)), together))
    idle = together.routes[0].model_copy(update={"weights": (1.0, 0.0)})
    given = small(rule("replicas", 2), nodes=(2,))
    assert any("there are 1" in text for text in evaluate(given, replace(together, routes=(idle, together.routes[1]))))


def test_more_than_there_can_be_is_refused_with_its_line() -> None:
    for given in (small(rule("nodes", 3)), small(rule("replicas", 5))):
        diags = Diagnostics()
        assert place(given, diags=diags) is None
        (item,) = diags
        assert item.code.id == "BC402"
        assert item.help is not None
        assert "without `m0" in item.help
        assert closed_form(packing_of(Views(problem=given))).infeasible


def fewest(packing: Packing) -> int | None:
    """Of packings on single devices, each group in one unit for each of its copies: found by trying all."""
    every = range(packing.devices)
    kind_of = {device: block.kinds[0] for block in packing.blocks for device in block.devices}
    best = None
    for places in itertools.product(
        *(itertools.combinations_with_replacement(every, group.units) for group in packing.groups)
    ):
        cells = [
            PackedCell(
                kind=kind_of[device], devices=(device,),
                units=tuple((g, count) for g, own in enumerate(places) if (count := own.count(device))),
            )
            for device in sorted({device for own in places for device in own})
        ]  # fmt: skip
        if (best is None or len(cells) < best) and packing_problem(packing, cells) is None:
            best = len(cells)
    return best


@pytest.mark.parametrize("seed", range(12))
def test_searches_and_bounds_agree_with_trying_all(seed: int) -> None:
    nodes = ((2, 1), (1, 1, 1), (3,))[seed % 3]
    given = random_loaded(seed, most_models=4, nodes=nodes)
    kind, chains = ("replicas", "nodes")[seed % 2], len(given.chains)
    rules = (*given.rules, rule(kind, 2, seed % chains), *([rule("replicas", 3, 0)] if seed % 5 == 0 else []))
    packing = packing_of(Views(problem=replace(given, rules=rules)))
    if sum(group.units for group in packing.groups) > 7:
        packing = replace(packing, groups=tuple(replace(g, units=max(g.copies, 1)) for g in packing.groups))
    narrow = replace(packing, blocks=tuple(replace(block, kinds=block.kinds[:1]) for block in packing.blocks))
    best = fewest(narrow)
    found = least_spent(narrow, None, least=1, units=5.0, seed=7, gap=0.0)
    assert (None if found.cells is None else devices_of(found.cells)) == best
    bound, counted = closed_form(narrow), aggregate(narrow, units=0.5, least=1, most=narrow.devices, seed=7)
    if best is None:
        assert multi_start(narrow, 4) is None
        return
    assert not bound.infeasible
    assert not counted.infeasible
    assert max(bound.value, counted.value) <= best
    cells = multi_start(narrow, 8)
    if cells is not None:
        assert packing_problem(narrow, cells) is None
        assert packing_problem(narrow, improve(narrow, cells, rounds=60, least=1)) is None
