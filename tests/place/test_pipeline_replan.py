"""Pipelines that follow an earlier plan: nothing moves without need, and what has to goes where most of it lies."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from functools import cache

import pytest

from blockc.diag import Diagnostics
from blockc.place import PlaceChain, Placement, PlaceProblem, PlaceRule, place
from blockc.place.evaluate import evaluate
from blockc.place.loads import merged
from blockc.place.problem import PlaceBefore
from tests.place.loads import GB
from tests.place.pipelines import before_of, fleet, part, random_fleet, without_devices

SEEDS = range(5)


@cache
def first_of(seed: int) -> Placement | None:
    return place(random_fleet(seed), diags=Diagnostics())


def follows(given: PlaceProblem, before: PlaceBefore, *, budget_bytes: int | None = None) -> Placement | None:
    after = replace(given, before=before, move_budget_bytes=budget_bytes)
    placement = place(after, diags=Diagnostics())
    assert placement is None or evaluate(after, placement) == ()
    return placement


def layout(placement: Placement) -> list[object]:
    return [(own.chains, own.devices, own.stages) for own in placement.instances]


def moved(placement: Placement) -> int:
    assert placement.solver.moved_bytes is not None
    return placement.solver.moved_bytes


def held_bytes(placement: Placement, device: int) -> int:
    return placement.memory[device].weights_bytes + placement.memory[device].sides_bytes


def scaled(given: PlaceProblem, factor: Fraction) -> PlaceProblem:
    def own(chain: PlaceChain) -> PlaceChain:
        if chain.load is None:
            return chain
        return replace(chain, load=merged([replace(p, rate_rps=p.rate_rps * factor) for p in chain.load.parts]))

    return replace(given, chains=tuple(own(chain) for chain in given.chains))


@pytest.mark.parametrize("seed", SEEDS)
def test_what_stays_as_it_is_stays_where_it_is(seed: int) -> None:
    given, first = random_fleet(seed), first_of(seed)
    assert first is not None
    assert first.solver.moved_bytes is None
    again = follows(given, before_of(given, first))
    assert again is not None
    assert moved(again) == 0
    assert layout(again) == layout(first)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_device_more_changes_nothing(seed: int) -> None:
    given, first = random_fleet(seed), first_of(seed)
    assert first is not None
    more = replace(given.devices[-1], address=f"n{seed % 3}/new")
    larger = replace(given, devices=(*given.devices, more))
    again = follows(larger, before_of(given, first))
    assert again is not None
    assert moved(again) == 0 or again.solver.value < first.solver.value
    if again.solver.value == first.solver.value:
        assert layout(again) == layout(first)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_device_less_moves_no_more_than_it_had(seed: int) -> None:
    """As long as others like it are free where the same links lead."""
    given, first = random_fleet(seed), first_of(seed)
    assert first is not None
    used = sorted({device for own in first.instances for device in own.devices})
    gone = random.Random(seed).choice(used)
    smaller = without_devices(given, frozenset({gone}))
    again = follows(smaller, before_of(given, first, without=frozenset({gone})))
    if again is None:
        assert len(used) == len(given.devices) or place(smaller, diags=Diagnostics()) is None
        return
    assert moved(again) > 0
    nodes = [given.devices[device].node for device in range(len(given.devices)) if device not in used]
    if given.devices[gone].node in nodes or len({own.node for own in given.devices}) == len(given.devices):
        assert moved(again) <= held_bytes(first, gone)


@pytest.mark.parametrize("seed", SEEDS)
def test_loads_that_change_move_no_more_than_without_a_look_at_what_was_there(seed: int) -> None:
    given, first = random_fleet(seed), first_of(seed)
    assert first is not None
    after = scaled(given, Fraction(random.Random(seed).choice([60, 110, 150]), 100))
    scratch = place(after, diags=Diagnostics())
    before = before_of(given, first)
    free, bound = follows(after, before), follows(after, before, budget_bytes=1)
    assert (scratch is None) == (free is None) == (bound is None)
    if scratch is None or free is None or bound is None:
        return
    assert free.solver.value <= scratch.solver.value
    assert moved(bound) <= moved(free)
    assert moved(free) <= sum(held_bytes(free, device) for device in range(len(after.devices)))
    if moved(free) > 1:
        assert moved(bound) <= 1 or bound.solver.value >= free.solver.value


def test_copies_that_are_not_needed_go_unless_that_moves_more_than_it_may() -> None:
    """A model that was spread over small stages, and that two devices hold."""
    given = fleet([("a", [10] * 12)], [[]], nodes=(6,))
    spread = place(replace(given, stages=4), diags=Diagnostics())
    assert spread is not None
    before = before_of(given, spread)
    fewer = follows(given, before)
    assert fewer is not None
    assert fewer.solver.value == 2
    # The first stage has half of what it needs already, the second a third of it where most lies.
    assert 0 < moved(fewer) < 120 * GB
    stays = follows(given, before, budget_bytes=GB)
    assert stays is not None
    assert layout(stays) == layout(spread)
    assert moved(stays) == 0


def test_a_new_fine_tune_joins_what_is_there_and_a_pin_moves_what_it_has_to() -> None:
    given = fleet([("a", [10] * 12), ("a", [10] * 12)], [[], []], nodes=(2, 2), side_bytes=GB)
    one = replace(given, chains=given.chains[:1], work=None)
    first = place(one, diags=Diagnostics())
    assert first is not None
    joined = follows(given, before_of(one, first))
    assert joined is not None
    assert [own.chains for own in joined.instances] == [(0, 1)]
    assert moved(joined) == GB
    there = frozenset({2, 3})
    rule = PlaceRule(kind="pin", chains=(0,), devices=there, text="m0 on n1", span=None)
    pinned = follows(replace(one, rules=(rule,)), before_of(one, first))
    assert pinned is not None
    assert set(pinned.instances[0].devices) == there
    assert moved(pinned) == 121 * GB


def lying(given: PlaceProblem, chain: int, devices: dict[int, slice]) -> PlaceBefore:
    """Blocks of a chain's weights on devices, and nobody who says what they are for."""
    return PlaceBefore(
        cells=(), chains={}, widths=dict.fromkeys(devices, 1),
        tensors={
            device: frozenset(t.ref.digest for block in given.chains[chain].blocks[part] for t in block.tensors)
            for device, part in devices.items()
        },
    )  # fmt: skip


def test_new_pipelines_leave_others_where_they_are() -> None:
    """The first node is the smallest with room, and one of its devices has what somebody else needs."""
    given = fleet([("a", [10] * 12), ("x", [10] * 3)], [[], []], nodes=(2, 3))
    placement = follows(given, lying(given, 1, {0: slice(None)}))
    assert placement is not None
    assert next(own.devices for own in placement.instances if own.chains == (1,)) == (0,)
    assert moved(placement) == 120 * GB


@pytest.mark.parametrize("node", range(3))
def test_new_pipelines_go_where_their_weights_lie(node: int) -> None:
    """On any node, stages the other way round; each of nine devices on the last node has one of the blocks."""
    given = fleet([("a", [10] * 12)], [[part("p", 0.2)]], nodes=(2, 2, 9))
    placement = follows(given, lying(given, 0, {2 * node: slice(6, 12), 2 * node + 1: slice(6)}))
    assert placement is not None
    assert [stage.devices for stage in placement.instances[0].stages] == [(2 * node + 1,), (2 * node,)]
    assert moved(placement) == 0
    blocks = {4 + number: slice(number, number + 1) for number in range(9)}
    placement = follows(given, lying(given, 0, blocks))
    assert placement is not None
    assert moved(placement) == 100 * GB, "two devices of the same node, one block of each stage"
