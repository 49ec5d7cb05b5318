"""Blocks that take turns: what a device holds at once, against trying everything, and who stays, waits, and where."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from blockc.diag import Diagnostics
from blockc.place import PlaceProblem, PlaceTurn, place
from blockc.place.evaluate import evaluate
from blockc.place.sizes import sizes_of
from blockc.place.stages.explain import report_without_effect
from blockc.place.turns import Room, check_room, share_room
from tests.place.loads import random_loaded
from tests.place.problems import (
    assert_grows_by_chains,
    chain,
    device,
    load,
    placed_on_fewest,
    problem,
    random_problem,
    segment,
    span,
)

GIB = 1 << 30


def limited(seed: int) -> PlaceProblem:
    """A random problem in which what no two bases share takes turns, where it is more than the limit."""
    rng = random.Random(seed)
    given = random_problem(seed)
    reading = rng.choice([0, 512])
    segments = tuple(
        replace(
            own,
            turn=PlaceTurn(
                tensors=own.tensors, reading_bytes=reading,
                residency=rng.choice([None, None, None, "cold"]) if seed % 3 == 0 else None,
            ),
        )
        if rng.random() < 0.7
        else own
        for own in given.segments
    )  # fmt: skip
    has_to = any(own.turn is not None and own.turn.residency for own in segments)
    need = max(
        sum(next(iter(segments[s].tensors)).nbytes for s in own.segments if segments[s].turn) for own in given.chains
    )
    return replace(
        given, segments=segments, blocks_limit_bytes=need + reading + 512 * rng.choice([0, 10, 40]),
        blocks_reading_bytes=reading if has_to else 0, blocks_limit_span=span(4),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_no_assignment_uses_fewer_devices(seed: int) -> None:
    given = limited(seed)
    placement = placed_on_fewest(given)
    if placement is None:
        return
    for entry in placement.memory:
        assert entry.blocks_bytes <= (given.blocks_limit_bytes or 0)
    for instance in placement.instances:
        turning = {turn.segment: turn.nbytes for turn in instance.turns}
        for own in instance.chains:
            assert sum(turning.get(s, 0) for s in given.chains[own].segments) <= instance.room_bytes


@pytest.mark.parametrize("seed", range(60))
def test_a_growing_load_is_the_sum_of_its_chains(seed: int) -> None:
    assert_grows_by_chains(sizes_of(limited(seed)))


def fleet(*, limit_gib: int, rates: tuple[int | None, ...] = (None,) * 4, kind: str = "l4_24g") -> PlaceProblem:
    """Four models of 10 GiB each, which share a segment below with the base."""
    segments = [segment("base", 4 * GIB), segment("upper", 10 * GIB)]
    chains = [chain("base", (0, 1))]
    for number, rate in enumerate(rates):
        segments.append(segment(f"own {number}", 10 * GIB))
        chains.append(replace(chain(f"tuned {number}", (0, 2 + number)), load=None if rate is None else load(rate)))
    given = problem([device(0, 100 * GIB, kind=kind)], segments, chains)
    turning = tuple(
        replace(own, turn=PlaceTurn(tensors=own.tensors, reading_bytes=GIB)) if number > 1 else own
        for number, own in enumerate(given.segments)
    )
    return replace(given, segments=turning, blocks_limit_bytes=limit_gib * GIB, blocks_limit_span=span(4))


def room(given: PlaceProblem, kind: str = "l4_24g") -> Room:
    return share_room(given, range(len(given.chains)), kind=kind)


def test_without_loads_all_take_turns() -> None:
    found = room(fleet(limit_gib=25))
    assert [turn.segment for turn in found.turns] == [2, 3, 4, 5]
    assert (found.room_bytes, found.reading_bytes, found.kept_bytes) == (24 * GIB, GIB, 0)


def test_what_fits_stays() -> None:
    assert room(fleet(limit_gib=40)) == Room(kept_bytes=40 * GIB)


def test_the_hottest_stay_beside_room_for_two_of_the_others() -> None:
    found = room(fleet(limit_gib=35, rates=(1, 9, None, 3)))
    assert [turn.segment for turn in found.turns] == [2, 4, 5], "the second stays; no more than one fits beside two"
    assert (found.room_bytes, found.kept_bytes) == (24 * GIB, 10 * GIB)
    assert [turn.uses_rps for turn in found.turns] == [1.0, 0.0, 3.0]
    assert not room(fleet(limit_gib=25, rates=(1, 9, None, 3))).kept_bytes, "two would not fit beside it"


def test_what_is_seldom_wanted_does_not_stay() -> None:
    given = fleet(limit_gib=35, rates=(1, 1, 1, 1))
    loads = [own.load for own in given.chains]
    rare = tuple(
        own if own.load is None else replace(own, load=replace(own.load, rate_rps=own.load.rate_rps / 1000))
        for own in given.chains
    )
    assert any(loads)
    assert not room(replace(given, chains=rare)).kept_bytes


def test_hosts_keep_what_they_have_memory_for() -> None:
    given = replace(fleet(limit_gib=25, rates=(None, 2, None, 1)), host_limit_bytes=20 * GIB)
    cold = replace(given, blocks_limit_bytes=15 * GIB)
    assert {turn.segment: turn.kept for turn in room(cold).turns} == {2: "zoo", 3: "host", 4: "zoo", 5: "host"}
    assert {turn.kept for turn in room(cold, kind="cpu").turns} == {"zoo"}


def test_a_spec_says_who_waits_where() -> None:
    given = fleet(limit_gib=60)
    said = {2: "cold", 4: "stream"}
    segments = tuple(
        own if own.turn is None else replace(own, turn=replace(own.turn, residency=said.get(number)))
        for number, own in enumerate(given.segments)
    )
    found = room(replace(given, segments=segments, blocks_reading_bytes=GIB))
    assert {turn.segment: turn.kept for turn in found.turns} == {2: "zoo", 4: "host"}
    assert (found.room_bytes, found.kept_bytes) == (20 * GIB, 20 * GIB)


def test_a_room_that_is_too_small_names_its_line_and_what_is_needed() -> None:
    diags = Diagnostics()
    assert not check_room(fleet(limit_gib=10), diags)
    (item,) = diags
    assert item.code.id == "BC401"
    assert "11.0 GiB of 10.0 GiB" in item.message
    assert item.primary is not None
    assert item.primary.span == span(4)
    assert "`blocks` of the policy's `residency` to 11.0 GiB" in (item.help or "")
    assert check_room(fleet(limit_gib=11), Diagnostics())


def test_a_room_is_said_to_do_nothing_for_what_runs_in_stages() -> None:
    diags = Diagnostics()
    report_without_effect(fleet(limit_gib=60), {1}, diags=diags)
    (item,) = diags
    assert (item.code.id, item.primary and item.primary.span) == ("BC804", span(4))
    assert "`blocks` of `residency` acts on nothing in stages" in item.message


@pytest.mark.parametrize("limit_gib", [15, 25, 35])
def test_a_device_offers_what_its_room_leaves(limit_gib: int) -> None:
    """Base and cache take 14 GiB of 45; four models of 10 GiB of their own fit beside them in 31 at most."""
    given = replace(fleet(limit_gib=limit_gib), devices=(device(0, 45 * GIB, kind="l4_24g"),))
    assert (place(given, diags=Diagnostics()) is not None) == (limit_gib <= 25)


@pytest.mark.parametrize("seed", range(12))
def test_loads_are_placed_beside_blocks_that_take_turns(seed: int) -> None:
    """`place` has every plan by load checked by `evaluate`; a plan with less than it needs is seen by it."""
    given = random_loaded(seed)
    top = max(own.segments[-1] for own in given.chains)
    segments = tuple(
        replace(own, turn=PlaceTurn(tensors=own.tensors, reading_bytes=0)) if number % 2 or number == top else own
        for number, own in enumerate(given.segments)
    )
    sizes = [0 if own.turn is None else sum(item.nbytes for item in own.turn.tensors) for own in segments]
    limit = max(sum(sizes[segment] for segment in own.segments) for own in given.chains)
    given = replace(given, segments=segments, blocks_limit_bytes=limit * 11 // 10)
    placement = place(given, diags=Diagnostics())
    if placement is None or not any(instance.turns for instance in placement.instances):
        return
    assert evaluate(given, placement) == ()
    short = tuple(item.model_copy(update={"room_bytes": item.room_bytes // 2}) for item in placement.instances)
    assert any("no room" in text for text in evaluate(given, replace(placement, instances=short)))
