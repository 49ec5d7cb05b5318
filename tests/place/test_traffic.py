"""Placement by load: every result holds, bounds are bounds, and small problems are solved exactly."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import pytest

from benchmarks.placement_instances import INSTANCES, POLICIES, problem_of
from blockc.diag import Diagnostics
from blockc.place import Placement, PlaceProblem, PlaceRule, place
from blockc.place.cells import Views
from blockc.place.evaluate import evaluate
from blockc.place.traffic.aggregate import aggregate, closed_form
from blockc.place.traffic.flat import Flat, least_spent
from blockc.place.traffic.greedy import Filler, choices_of_kinds, multi_start
from blockc.place.traffic.improve import improve
from blockc.place.traffic.packing import devices_of, packing_problem
from blockc.place.traffic.shares import shares_of
from blockc.place.traffic.solve import solve
from blockc.place.traffic.times import busy_limit, first_token_s
from blockc.place.traffic.units import packing_of
from tests.place.loads import bins, every_packing, load, loaded, random_loaded

SEEDS = range(25)


def placed(given: PlaceProblem) -> tuple[Placement | None, Diagnostics]:
    diags = Diagnostics()
    placement = place(given, diags=diags)
    errors = [item.code.id for item in diags if item.code.id not in ("BC403", "BC404", "BC406")]
    assert (placement is None) == bool(errors)
    return placement, diags


@pytest.mark.parametrize("seed", SEEDS)
def test_every_placement_holds_and_bounds_are_bounds(seed: int) -> None:
    given = random_loaded(seed)
    packing = packing_of(Views(problem=given))
    placement, _ = placed(given)
    cells = multi_start(packing, 10)
    if cells is not None:
        assert packing_problem(packing, cells) is None
        better = improve(packing, cells, rounds=50, least=1)
        assert packing_problem(packing, better) is None
        assert devices_of(better) <= devices_of(cells)
    if placement is None:
        return
    assert evaluate(given, placement) == ()
    assert placement.solver.bound <= placement.solver.value
    assert closed_form(packing).value <= placement.solver.value
    counted = aggregate(packing, units=0.2, least=1, most=packing.devices, seed=7)
    assert not counted.infeasible
    assert counted.value <= placement.solver.value


@pytest.mark.parametrize("seed", range(40))
def test_no_packing_of_whole_models_is_better(seed: int) -> None:
    """Trying all cells of one device can at best be as good: splitting and wide cells only add choices."""
    given = random_loaded(seed, most_models=4, nodes=(3,))
    packing = packing_of(Views(problem=given))
    fewest = every_packing(packing)
    placement, _ = placed(given)
    if fewest is not None:
        assert placement is not None
        assert placement.solver.value <= fewest
        assert placement.solver.bound <= fewest
    # Where nothing else is allowed, the exact model finds just that.
    narrow = packing_of(Views(problem=replace(given, devices=_apart(given))))
    whole = replace(narrow, groups=tuple(replace(group, units=1) for group in narrow.groups))
    if all(group.units == 1 for group in narrow.groups):
        found = least_spent(whole, None, least=1, units=5.0, seed=7, gap=0.0)
        assert (None if found.cells is None else devices_of(found.cells)) == every_packing(whole)


def _apart(given: PlaceProblem) -> tuple:  # type: ignore[type-arg]
    return tuple(replace(device, address=f"n{index}/g") for index, device in enumerate(given.devices))


@pytest.mark.parametrize("seed", range(8))
def test_planted_bins_are_filled_exactly(seed: int) -> None:
    """Up to 40 items that were cut from full bins."""
    generator = random.Random(seed)
    capacity, count = 1000, generator.randint(3, 10)
    sizes: list[int] = []
    for _ in range(count):
        cuts = sorted(generator.sample(range(100, 901, 10), generator.randint(1, 3)))
        sizes += [after - before for before, after in zip([0, *cuts], [*cuts, capacity], strict=True)]
    generator.shuffle(sizes)
    assert len(sizes) <= 40
    solved = solve(bins(sizes, capacity, 16), seed=7, limit_s=60, gap=0.0)
    assert solved.cells is not None
    assert devices_of(solved.cells) == solved.bound == count


@pytest.mark.parametrize("seed", range(10))
def test_what_is_remembered_of_a_cell_is_as_if_found_afresh(seed: int) -> None:
    packing = packing_of(Views(problem=random_loaded(seed)))
    filler = Filler(packing, choices_of_kinds(packing)[0])
    remembered = 0
    for group, own in enumerate(packing.groups):
        for _ in range(own.units):
            cell = filler.choose(group) or filler.open(group)
            if cell is not None and filler.fit(cell, group) is not None:
                filler.add(cell, group)
        for other in range(len(packing.groups)):
            found = filler.choose(other)
            remembered += sum(len(cell.known) for cell in filler.cells)
            for cell in filler.cells:
                cell.known = {}
            assert filler.choose(other) is found
    assert remembered


@pytest.mark.parametrize("seed", range(30))
def test_shares_leave_every_cell_as_it_may_be(seed: int) -> None:
    given = random_loaded(seed)
    packing = packing_of(Views(problem=given))
    cells = multi_start(packing, 4)
    for group, own in shares_of(packing, cells or ()).items():
        assert sum(own.values()) == pytest.approx(1.0)
        assert set(own) == {n for n, cell in enumerate(cells or ()) if group in dict(cell.units)}


def test_a_hot_model_runs_in_several_places_and_says_in_which_part() -> None:
    hot = loaded([14.0], [(0,)], [load(22)], nodes=(4,), link=None)
    placement, _ = placed(hot)
    assert placement is not None
    (route,) = placement.routes
    assert len(route.alternatives) == len(placement.instances) > 1
    assert sum(route.weights) == pytest.approx(1.0)
    assert max(route.weights) < 2 * min(route.weights)
    assert route.tpot_s == 0.05
    for instance in placement.instances:
        assert instance.load is not None
        assert instance.load.traffic + instance.load.sweeps <= instance.load.limit == 0.8
        assert instance.load.batches[0] >= 1


def test_more_load_never_needs_fewer_devices() -> None:
    values = []
    for rate in (1, 4, 8, 16):
        placement, _ = placed(loaded([14.0, 2.0, 2.0], [(0, 1), (0, 2)], [load(rate), load(rate)], nodes=(8,)))
        assert placement is not None
        values.append(placement.solver.value)
    assert values == sorted(values)
    assert values[0] < values[-1]


def test_a_tighter_target_takes_more_of_a_device() -> None:
    def sweeps(tpot_ms: int) -> float:
        placement, _ = placed(loaded([14.0], [(0,)], [load(1, tpot_ms=tpot_ms)], nodes=(1,)))
        assert placement is not None
        assert placement.instances[0].load is not None
        return placement.instances[0].load.sweeps

    assert sweeps(40) == pytest.approx(2 * sweeps(80), rel=1e-3)


def test_a_target_for_the_first_token_leaves_more_of_a_cell_idle() -> None:
    easy, tight = load(1, ttft_ms=5000), load(1, ttft_ms=800)
    assert (busy_limit(0.1, easy) or 0) > (busy_limit(0.1, tight) or 0) > 0
    assert busy_limit(0.1, load(1, ttft_ms=50)) is None
    assert first_token_s(0.1, 0.8, 0.05) > first_token_s(0.1, 0.4, 0.05) > 0.15


def test_headroom_is_left_free() -> None:
    given = loaded([14.0, 2.0, 2.0], [(0, 1), (0, 2)], [load(6), load(6)], nodes=(8,))
    before, _ = placed(given)
    after, _ = placed(replace(given, headroom=Fraction(1, 4)))
    assert before is not None
    assert after is not None
    assert after.solver.value > before.solver.value
    for instance in after.instances:
        assert instance.load is not None
        assert instance.load.limit == pytest.approx(0.6)


def test_rules_hold() -> None:
    base = loaded([14.0, 1.0, 1.0, 1.0], [(0, 1), (0, 2), (0, 3)], [load(0.5)] * 3, nodes=(4,))
    free, _ = placed(base)
    assert free is not None
    assert free.solver.value == 1
    for rule, devices in (
        (PlaceRule(kind="pin", chains=(1,), devices=frozenset({3}), text="pin"), 1),
        (PlaceRule(kind="apart", chains=(0, 1), text="apart"), 2),
        (PlaceRule(kind="alone", chains=(0,), text="alone"), 2),
    ):
        placement, _ = placed(replace(base, rules=(rule,)))
        assert placement is not None
        assert placement.solver.value == devices
        assert evaluate(replace(base, rules=(rule,)), placement) == ()
        if rule.kind == "pin":
            assert placement.instances[placement.routes[1].alternatives[0][0]].devices == (3,)
        else:
            assert evaluate(replace(base, rules=(rule,)), free) == (f"`{rule.kind}` does not hold",)


def test_rules_hold_where_nothing_is_expected() -> None:
    base = replace(loaded([14.0, 1.0], [(0,), (0, 1)], [None, None], nodes=(2,)), work=None, speeds={})
    rule = PlaceRule(kind="apart", chains=(0, 1), text="apart")
    placement, _ = placed(replace(base, rules=(rule,)))
    assert placement is not None
    assert placement.solver.value == 2


def test_loads_on_devices_of_unknown_speed_are_named() -> None:
    given = loaded([14.0], [(0,)], [load(22)], nodes=(4,))
    placement, diags = placed(replace(given, speeds={}))
    assert placement is not None
    assert placement.solver.value == 1
    assert [item.code.id for item in diags] == ["BC404"]
    rule = PlaceRule(kind="pin", chains=(0,), devices=frozenset({2}), text="pin")
    pinned, diags = placed(replace(given, speeds={}, rules=(rule,)))
    assert pinned is not None
    assert pinned.instances[0].devices == (2,)
    assert [item.code.id for item in diags] == ["BC404"]


def test_a_rule_that_can_never_hold_is_refused() -> None:
    rule = PlaceRule(kind="apart", chains=(0, 0), text="a apart from b", conflict="both are one")
    _, diags = placed(loaded([14.0], [(0,)], [load(1)], rules=(rule,)))
    assert [item.code.id for item in diags] == ["BC402"]


def test_the_checker_sees_what_is_wrong() -> None:
    given = loaded([14.0], [(0,)], [load(22)], nodes=(4,), link=None)
    placement, _ = placed(given)
    assert placement is not None
    assert any("busy" in text for text in evaluate(_with_rate(given, 80), placement))
    one_way = replace(
        placement, routes=(placement.routes[0].model_copy(update={"weights": (), "alternatives": ((0,),)}),)
    )
    assert any("does not name" in text for text in evaluate(given, one_way))
    few = placement.instances[0].model_copy(update={"kv_pages": {0: 1}})
    assert evaluate(given, replace(placement, instances=(few, *placement.instances[1:])))


def test_a_placement_that_does_not_hold_is_a_defect_and_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["blockc.place.place"], "evaluate", lambda *_: ("chain 0 is nowhere", "more"))
    quiet = loaded([14.0], [(0,)], [None])
    for given in (loaded([14.0], [(0,)], [load(1)]), replace(quiet, work=None, speeds={})):
        diags = Diagnostics()
        assert place(given, diags=diags) is None
        (item,) = diags
        assert item.code.id == "BC999"
        assert "chain 0 is nowhere, and 1 more" in item.message


def _with_rate(given: PlaceProblem, rate: int) -> PlaceProblem:
    return replace(given, chains=tuple(replace(chain, load=load(rate)) for chain in given.chains))


def test_sharing_never_costs_devices() -> None:
    """The design's smaller fleets under all three policies, with the same effort."""
    for instance in INSTANCES[:2]:
        found = []
        for policy in POLICIES:
            placement, _ = placed(problem_of(instance, policy, more_devices=1 if policy == "ours" else 2))
            assert placement is not None
            found.append(placement.solver.value)
        assert found == sorted(found, reverse=True)
        assert found[0] > found[-1]


def test_a_wrong_claim_of_the_solver_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    given = loaded([14.0, 1.0, 1.0], [(0, 1), (0, 2)], [load(5), load(5)], nodes=(4,))
    real = Flat.run

    def lying(self: Flat, **options: object) -> object:
        outcome = real(self, **options)  # type: ignore[arg-type]
        return replace(outcome, cells=None, infeasible=True) if options.get("presolve", True) else outcome

    monkeypatch.setattr(Flat, "run", lying)
    placement, _ = placed(given)
    assert placement is not None
    assert evaluate(given, placement) == ()


_PROGRAM = """
from blockc.diag import Diagnostics
from blockc.place import place
from tests.place.loads import random_loaded
for seed in (1, 5):
    found = place(random_loaded(seed, nodes=(2, 2)), diags=Diagnostics())
    print(None if found is None else [e.model_dump_json() for e in (*found.instances, *found.routes, found.solver)])
"""


def test_two_processes_with_different_hash_seeds_place_alike() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "4242")
    }  # fmt: skip
    assert len(outputs) == 1
