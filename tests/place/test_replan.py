"""Plans that follow others: nothing moves without need, budgets hold, and what is new still holds."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction

import pytest

from benchmarks.placement_instances import INSTANCES, problem_of
from blockc.diag import Diagnostics
from blockc.place import Placement, PlaceProblem, place
from blockc.place.cells import Views
from blockc.place.evaluate import evaluate
from blockc.place.problem import BeforeCell, PlaceBefore
from blockc.place.traffic.replan import moved_bytes, named, repair
from blockc.place.traffic.solve import solve
from blockc.place.traffic.units import packing_of
from tests.place.loads import random_loaded


def placed(given: PlaceProblem) -> Placement | None:
    return place(given, diags=Diagnostics())


def before_of(given: PlaceProblem, placement: Placement) -> PlaceBefore:
    """As `blockc.place.before` makes it of a plan."""
    cells, tensors, chains, widths = [], {}, {}, {}
    for number, instance in enumerate(placement.instances):
        weights = []
        for chain in instance.chains:
            route = placement.routes[chain]
            place_ = [way[0] for way in route.alternatives].index(number)
            weights.append((chain, route.weights[place_] if route.weights else 1.0))
        cells.append(BeforeCell(devices=instance.devices, chains=tuple(weights)))
        for device in instance.devices:
            used = {t for s in instance.segments for t in given.segments[s].tensors}
            tensors[device] = frozenset(tensor.ref.digest for tensor in used)
            chains[device] = frozenset(instance.chains)
            widths[device] = len(instance.devices)
    return PlaceBefore(cells=tuple(cells), tensors=tensors, chains=chains, widths=widths)


def drifted(given: PlaceProblem, seed: int) -> PlaceProblem:
    """Every rate up or down by up to a fifth."""
    generator = random.Random(seed)
    return replace(
        given,
        chains=tuple(
            chain
            if chain.load is None
            else replace(
                chain,
                load=replace(chain.load, rate_rps=chain.load.rate_rps * Fraction(generator.randint(80, 120), 100)),
            )
            for chain in given.chains
        ),
    )


@pytest.mark.parametrize("seed", range(8))
def test_the_same_spec_moves_nothing(seed: int) -> None:
    given = random_loaded(seed)
    first = placed(given)
    if first is None:
        return
    again = placed(replace(given, before=before_of(given, first)))
    assert again is not None
    assert again.solver.moved_bytes == 0
    assert again.solver.value == first.solver.value
    assert first.solver.moved_bytes is None


@pytest.mark.parametrize("seed", range(8))
def test_plans_that_follow_hold_and_keep_to_the_budget(seed: int) -> None:
    given = random_loaded(seed)
    first = placed(given)
    after = drifted(given, seed)
    if first is None or placed(after) is None:
        return
    before = before_of(given, first)
    free = placed(replace(after, before=before))
    bound = placed(replace(after, before=before, move_budget_bytes=1))
    assert free is not None
    assert bound is not None
    assert evaluate(after, free) == () == evaluate(after, bound)
    assert free.solver.moved_bytes is not None
    assert bound.solver.moved_bytes is not None
    assert bound.solver.moved_bytes <= free.solver.moved_bytes
    assert free.solver.value <= bound.solver.value


def test_names_are_given_where_weights_lie_and_repairs_move_less() -> None:
    """Twenty fine-tunes whose rates drift."""
    given = replace(problem_of(INSTANCES[1], "ours", more_devices=2))
    first = placed(given)
    assert first is not None
    after = drifted(given, 5)
    views = Views(problem=after)
    before = before_of(given, first)
    packing = packing_of(views)
    scratch = solve(packing, seed=7, limit_s=10, gap=0.0)
    assert scratch.cells is not None
    nearest = named(views, packing, scratch.cells, before)
    assert moved_bytes(views, nearest, before) <= moved_bytes(views, scratch.cells, before)
    repaired = repair(packing, before)
    assert repaired is not None
    assert moved_bytes(views, repaired, before) <= moved_bytes(views, nearest, before)
    everything = PlaceBefore(cells=(), tensors={}, chains={}, widths={})
    assert moved_bytes(views, repaired, before) < moved_bytes(views, repaired, everything) / 2
