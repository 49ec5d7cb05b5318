"""Fine-tunes that take turns in slots: who waits, who is let in, what is put where. Seeded."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from blockc_runtime.limits import EngineLimits
from blockc_runtime.scheduler.residents import Residents
from tests.runtime.scheduler.harness import Run, alone, limits, request

BANK = 7


def limited(slots: int, chains: tuple[int, ...] = (0, 1, 2, 3)) -> EngineLimits:
    """The harness's chains, some of them in one bank with fewer slots."""
    own = limits()
    return replace(
        own,
        chains=tuple(replace(chain, bank=BANK if index in chains else None) for index, chain in enumerate(own.chains)),
        bank_slots={BANK: slots},
    )


class Turns(Run):
    """Also knows what is in which slot, and that nobody runs whose fine-tune is in none."""

    def __post_init__(self):
        super().__post_init__()
        self.slots: dict[int, int] = {}
        self.fills = 0

    def step(self):
        step = super().step()
        if step is None:
            return None
        for fill in step.fills:
            assert 0 <= fill.slot < self.own.bank_slots[BANK]
            self.slots[fill.slot] = fill.chain
            self.fills += 1
        limited = {row.chain for row in step.rows if self.own.chains[row.chain].bank is not None}
        assert limited <= set(self.slots.values()), "the null executor would have refused it, too"
        return step

    def drain(self, bound=4000):
        for _ in range(bound):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError("work is left: a request starves")


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_everyone_is_answered_as_alone(slots: int, seed: int):
    rng = random.Random(seed)
    run = Turns(limited(slots))
    asked = [
        request(
            f"r{i}", [rng.randrange(90) for _ in range(rng.randint(1, 20))], chain=rng.randrange(6),
            app=rng.randrange(6), max_tokens=rng.randint(1, 9), group=f"g{rng.randrange(2)}",
        )
        for i in range(30)
    ]  # fmt: skip
    left = list(asked)
    cancelled = set()
    while left or run.scheduler.has_work:
        for _ in range(min(len(left), rng.randrange(4))):
            run.admit(left.pop())
        if rng.random() < 0.1 and run.tokens:
            name = rng.choice(sorted(run.tokens))
            events = run.scheduler.cancel(name)
            cancelled |= {event.request for event in events}
            run.take(events)
        run.step()
    for own in asked:
        if own.id not in cancelled:
            assert run.tokens[own.id] == alone(own), own.id
    assert run.ends.keys() == {own.id for own in asked}
    assert all(usage.held == 0 for usage in run.kv.usage())


def test_a_fine_tune_in_use_keeps_its_slot():
    run = Turns(limited(1))
    run.admit(request("long", [1], chain=0, max_tokens=30))
    run.step()
    run.step()
    run.admit(request("other", [1], chain=1, app=1, max_tokens=2))
    while "long" not in run.ends:
        run.step()
        assert run.slots == {0: 0}
    run.drain()
    assert run.slots == {0: 1}
    assert run.tokens["other"] == alone(request("other", [1], chain=1, max_tokens=2))


def test_who_needs_no_slot_is_not_held_up():
    run = Turns(limited(1))
    run.admit(request("long", [1], chain=0, max_tokens=50))
    run.step()
    run.step()
    run.admit(request("waits", [1], chain=1, app=1))
    run.admit(request("free", [1], chain=4, app=1))
    run.drain()
    ends = list(run.ends)
    assert ends.index("free") < ends.index("long") < ends.index("waits")


def test_nobody_overtakes_who_waits_for_a_slot():
    """Others of the fine-tune that is in the slot come again and again, and would keep it there."""
    run = Turns(limited(1))
    run.admit(request("first", [1], chain=0, max_tokens=4))
    run.step()
    run.step()
    run.admit(request("waits", [1], chain=1, app=1, max_tokens=2))
    for number in range(60):
        run.admit(request(f"again {number}", [1], chain=0, app=0, max_tokens=4))
        run.step()
    assert "waits" in run.ends


def test_the_least_recently_used_goes():
    run = Turns(limited(2))
    for name, chain in (("a", 0), ("b", 1), ("again", 0), ("c", 2)):
        run.admit(request(name, [1], chain=chain, app=chain, max_tokens=2))
        run.drain()
    assert set(run.slots.values()) == {0, 2}
    assert run.fills == 3


def test_a_fine_tune_that_cannot_be_read_ends_its_own_requests_only():
    run = Turns(limited(2))
    run.executor.prefetched = lambda: [
        (chain, "its file is damaged" if chain == 1 else None) for chain, _ in run.executor._prefetched
    ]
    for name, chain in (("a", 0), ("b", 1), ("c", 1), ("d", 2)):
        run.admit(request(name, [1], chain=chain, app=chain, max_tokens=2))
    run.drain()
    assert Counter(end.reason for end in run.ends.values()) == {"length": 2, "error": 2}
    assert run.ends["b"].message == run.ends["c"].message == "its fine-tune could not be loaded: its file is damaged"
    run.admit(request("later", [1], chain=1, app=1))
    assert run.ends["later"].reason == "error"


def test_what_is_read_ahead_is_bounded():
    own = limited(3)
    many = replace(own, chains=own.chains[:1] * 50)
    residents = Residents(many)
    lacking = [residents.lacking(chain) for chain in range(50)]
    wanted = residents.take_wanted()
    assert len(wanted) < 5
    assert [lacking[chain] for chain in wanted] == [("chain", chain) for chain in wanted]
    assert set(lacking[len(wanted) :]) == {("bank", BANK)}
    assert not residents.take_wanted(), "asked for once"


def test_a_lost_worker_has_nothing_in_its_slots():
    residents = Residents(limited(1))
    assert residents.lacking(0) == ("chain", 0)
    residents.arrived(0, None)
    assert residents.lacking(0) is None
    residents.hold(0)
    assert [(fill.chain, fill.slot) for fill in residents.take_fills()] == [(0, 0)]
    residents.forget()
    residents.release(0)  # the request that ran under it comes back
    assert residents.lacking(0) == ("chain", 0), "to be read again"
    residents.arrived(0, None)
    residents.hold(0)
    assert [(fill.chain, fill.slot) for fill in residents.take_fills()] == [(0, 0)]
