"""Limited sides: what a device holds at once, against trying everything, and the slots that banks get."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from blockc.diag import Diagnostics
from blockc.ir.layout import READ_AHEAD
from blockc.place import PlaceProblem, place
from blockc.place.sizes import sizes_of
from blockc.place.slots import share_slots, slot_bytes
from tests.place.problems import assert_grows_by_chains, placed_on_fewest, random_problem, span


def limited(seed: int) -> PlaceProblem:
    """A random problem with two banks, whose fine-tunes cannot all be in memory where many of them meet."""
    rng = random.Random(seed)
    given = random_problem(seed)
    sizes = [rng.randrange(10, 200) for _ in range(2)]
    chains = tuple(
        replace(chain, bank=None if bank == 2 else bank, side_bytes=0 if bank == 2 else sizes[bank])
        for chain in given.chains
        for bank in (rng.randrange(3),)
    )
    used = {chain.bank: chain.side_bytes for chain in chains}
    least = sum(used.values()) + READ_AHEAD * max(used.values())
    return replace(given, chains=chains, sides_limit_bytes=least + rng.randrange(300))


@pytest.mark.parametrize("seed", range(60))
def test_no_assignment_uses_fewer_devices(seed: int) -> None:
    given = limited(seed)
    placement = placed_on_fewest(given)
    if placement is None:
        return
    for entry in placement.memory:
        assert entry.sides_bytes <= max(given.sides_limit_bytes or 0, 0)


@pytest.mark.parametrize("seed", range(60))
def test_a_growing_load_is_the_sum_of_its_chains(seed: int) -> None:
    assert_grows_by_chains(sizes_of(limited(seed)))


@pytest.mark.parametrize("seed", range(200))
def test_slots_keep_the_limit_and_none_is_spared(seed: int) -> None:
    rng = random.Random(seed)
    given = limited(seed)
    given = replace(given, chains=tuple(rng.choice(given.chains) for _ in range(rng.randint(1, 40))))
    every = range(len(given.chains))
    limit = given.sides_limit_bytes
    assert limit is not None
    slots = share_slots(given, every)
    if not slots:
        assert sum(chain.side_bytes for chain in given.chains) <= limit
        return
    members = {bank: sum(chain.bank == bank for chain in given.chains) for bank in slots}
    assert members.keys() == {chain.bank for chain in given.chains} - {None}
    assert all(1 <= slots[bank] <= members[bank] for bank in slots)
    assert slot_bytes(given, every, slots) <= limit
    # One more for each bank that lacks some would be too much, or all are there.
    more = {bank: min(members[bank], count + 1) for bank, count in slots.items()}
    assert slot_bytes(given, every, more) > limit or more == slots


def test_a_limit_that_leaves_no_slot_names_its_line() -> None:
    given = next(item for item in map(limited, range(60)) if {chain.bank for chain in item.chains} >= {0, 1})
    given = replace(given, sides_limit_bytes=11, sides_limit_span=span(4))
    diags = Diagnostics()
    assert place(given, diags=diags) is None
    (item,) = diags
    assert item.code.id == "BC401"
    assert "2 kinds" in item.message
    assert item.primary is not None
    assert item.primary.span == span(4)
    assert "`fine_tunes`" in (item.help or "")
