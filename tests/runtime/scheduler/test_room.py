"""Segments whose weights take turns in a room: what is read, what goes for it, who waits. Seeded."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from blockc_runtime.limits import EngineLimits, TurnLimits
from blockc_runtime.scheduler.room import Room
from blockc_runtime.step import SegmentTurn, Step
from blockc_runtime.turn import next_step
from tests.runtime.scheduler.harness import Run, alone, limits, request

# Of the harness's segments all but the first, which chains 0 to 3 and 5 share: 1 is of chains 0, 1, 2 and 5, 2 of 3.
SIZES = {1: 30, 2: 20, 3: 10, 4: 25, 5: 15}


def turning(room: int, sizes: dict[int, int] | None = None, **changed) -> EngineLimits:
    """The harness's chains, some of whose segments take turns."""
    turns = {segment: TurnLimits(nbytes=nbytes) for segment, nbytes in (sizes or SIZES).items()}
    return replace(limits(**changed), turns=turns, room_bytes=room)


@dataclass
class Turns(Run):
    """Reads take a few steps. Knows what is in memory, and that what runs is never let go."""

    reading_steps: int = 0
    bad: frozenset[int] = frozenset()
    on_the_way: list[tuple[int, int]] = field(default_factory=list)  # steps left, segment
    here: set[int] = field(default_factory=set)
    reads: list[SegmentTurn] = field(default_factory=list)
    idle_turns: int = 0

    def __post_init__(self):
        super().__post_init__()
        bring, self.executor.brought = self.executor.bring, self.brought

        def noted(turn: SegmentTurn) -> None:
            used = {
                segment for item in self.scheduler._live.values() if item.state == "running" or item.step is not None
                for segment in self.own.chains[item.request.chain].segments
            }  # fmt: skip
            assert used.isdisjoint(turn.out), "a running request uses what goes"
            assert self.here >= set(turn.out)
            self.here.difference_update(turn.out)
            self.reads.append(turn)
            self.on_the_way.append((self.reading_steps, turn.segment))
            bring(turn)

        self.executor.bring = noted

    def brought(self):
        done = [segment for left, segment in self.on_the_way if left <= 0]
        self.on_the_way = [(left - 1, segment) for left, segment in self.on_the_way if left > 0]
        self.here.update(segment for segment in done if segment not in self.bad)
        held = sum(self.own.turns[s].nbytes for s in self.here | {segment for _, segment in self.on_the_way})
        assert held <= self.own.room_bytes
        return [(segment, "its file is damaged" if segment in self.bad else None) for segment in done]

    def step(self) -> Step | None:
        step = super().step()
        if step is not None:
            needed = {segment for row in step.rows for segment in self.own.chains[row.chain].segments}
            assert self.here >= needed & self.own.turns.keys(), "a row whose weights are not there"
        elif self.scheduler.has_work:
            self.idle_turns += 1
            assert self.on_the_way or self.idle_turns < 3, "requests are left, nothing runs and nothing is read"
        return step

    def drain(self, bound=4000):
        for _ in range(bound):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError("work is left: a request starves")


def needs(own: EngineLimits) -> int:
    """The room that the largest chain takes."""
    return max(sum(own.turns[s].nbytes for s in chain.segments if s in own.turns) for chain in own.chains)


@pytest.mark.parametrize("seed", range(60))
def test_everyone_is_answered_as_alone(seed: int):
    """Rooms from just enough for the largest chain up; arrivals, cancellations and slow reads."""
    rng = random.Random(seed)
    sizes = {segment: rng.randint(1, 40) for segment in rng.sample(range(6), rng.randint(1, 6))}
    least = needs(turning(0, sizes))
    pages = rng.choice([(40, 40), (18, 20)])
    run = Turns(
        turning(least + rng.choice([0, 0, 5, 30]), sizes, pages=pages, max_rows=rng.choice([2, 8])),
        reading_steps=rng.choice([0, 1, 7]),
    )
    asked = [
        request(
            f"r{i}", [rng.randrange(90) for _ in range(rng.randint(1, 20))], chain=rng.randrange(6),
            app=rng.randrange(6), max_tokens=rng.randint(1, 9), group=f"g{rng.randrange(2)}",
        )
        for i in range(30)
    ]  # fmt: skip
    left, cancelled = list(asked), set()
    while left or run.scheduler.has_work:
        for _ in range(min(len(left), rng.randrange(4))):
            run.admit(left.pop())
        if rng.random() < 0.1 and run.tokens:
            events = run.scheduler.cancel(rng.choice(sorted(run.tokens)))
            cancelled |= {event.request for event in events}
            run.take(events)
        run.step()
        assert run.now_s < 4000, "a request starves"
        run.idle_turns = 0
    for own in asked:
        if own.id not in cancelled:
            assert run.tokens[own.id] == alone(own), own.id
    assert run.ends.keys() == {own.id for own in asked}
    room = run.scheduler._residents.room
    assert all(count == 0 for count in room._holders.values())
    assert run.scheduler.gauges().counts.block_loads == len(run.reads)


@pytest.mark.parametrize("seed", range(30))
def test_nobody_is_starved_by_those_who_come_again_and_again(seed: int):
    """Two chains at most fit at once; one of them is asked for in every step, and the other one once."""
    rng = random.Random(seed)
    sizes = {1: 30, 2: 30, 4: 30}  # chain 0, chain 3, chain 4
    run = Turns(turning(rng.choice([30, 60]), sizes), reading_steps=rng.randrange(5))
    run.admit(request("first", [1], chain=0, max_tokens=rng.randint(2, 9)))
    for _ in range(8):
        run.step()
    run.admit(request("waits", [1], chain=3, app=1, max_tokens=2))
    for number in range(80):
        chain = rng.choice([0, 4])
        run.admit(request(f"again {number}", [1], chain=chain, app=0, max_tokens=rng.randint(1, 6)))
        run.step()
        run.idle_turns = 0
    assert "waits" in run.ends


def test_who_has_all_weights_is_not_held_up():
    """Chain 4 takes no turns: it is served while chain 3 is read, and while it waits for room."""
    run = Turns(turning(30, {1: 30, 2: 30}), reading_steps=5)
    run.admit(request("long", [1], chain=0, max_tokens=40))
    run.admit(request("free", [1], chain=4, app=1, max_tokens=3))
    for _ in range(4):
        run.step()
    assert "free" in run.ends
    assert not run.tokens["long"], "it is still being read"
    for _ in range(4):
        run.step()
    run.admit(request("waits", [1], chain=3, app=2))
    run.admit(request("again", [1], chain=4, app=1, max_tokens=3))
    run.drain()
    ends = list(run.ends)
    assert ends.index("again") < ends.index("long") < ends.index("waits")


def test_what_is_seldom_wanted_goes():
    """Three chains of equal size, room for two: the one that was asked for least is let go."""
    run = Turns(turning(60, {1: 30, 2: 30, 4: 30}))
    for number, chain in enumerate((0, 3, 0, 0, 3, 0, 4)):
        run.admit(request(f"r{number}", [1], chain=chain, max_tokens=2))
        run.drain()
    assert [(turn.segment, turn.out) for turn in run.reads] == [(1, ()), (2, ()), (4, (2,))]
    assert run.scheduler.gauges().counts.block_evictions == 1


def test_plans_say_what_is_wanted_before_anybody_has_come():
    turns = {1: TurnLimits(nbytes=30, uses_rps=0.1), 2: TurnLimits(nbytes=30, uses_rps=5.0), 4: TurnLimits(nbytes=30)}
    run = Turns(replace(turning(60, {1: 30, 2: 30, 4: 30}), turns=turns))
    for chain in (3, 0, 4):  # the first is expected most, and was used longest ago
        run.admit(request(f"r{chain}", [1], chain=chain, max_tokens=2))
        run.drain()
    assert [(turn.segment, turn.out) for turn in run.reads] == [(2, ()), (1, ()), (4, (1,))]


def test_nothing_goes_in_vain():
    """The cheapest first, 4 and 5, and then 1, beside which 5 need not go."""
    own = turning(100, {1: 60, 2: 70, 4: 10, 5: 30})
    room = Room(replace(own, chains=tuple(replace(own.chains[0], segments=(segment,)) for segment in (1, 2, 4, 5))))
    for chain, uses in ((2, 1), (3, 2), (0, 3)):
        for _ in range(uses):
            room.begin({chain: 1})
            room.is_there(chain)
            for turn in room.take_wanted():
                room.arrived(turn.segment, None)
            assert room.is_there(chain)
            room.hold(chain)
            room.release(chain)
    room.begin({1: 1})
    assert not room.is_there(1)
    (turn,) = room.take_wanted()
    assert turn == SegmentTurn(segment=2, out=(4, 1))


def test_a_segment_that_cannot_be_read_ends_the_requests_of_its_chains_only():
    run = Turns(turning(60, {1: 30, 2: 30}), bad=frozenset({2}))
    for name, chain in (("a", 0), ("b", 3), ("c", 3), ("d", 4)):
        run.admit(request(name, [1], chain=chain, app=chain, max_tokens=2))
    run.drain()
    reasons = {"a": "length", "b": "error", "c": "error", "d": "length"}
    assert {name: end.reason for name, end in run.ends.items()} == reasons
    assert run.ends["b"].message == "its fine-tune could not be loaded: its file is damaged"
    run.admit(request("later", [1], chain=3, app=1))
    assert run.ends["later"].reason == "error"


def test_a_claim_ends_with_the_last_request_that_waits():
    run = Turns(turning(30, {1: 30, 2: 30}), reading_steps=3)
    run.admit(request("gone", [1], chain=0))
    run.step()
    run.take(run.scheduler.cancel("gone"))
    run.admit(request("next", [1], chain=3, app=1, max_tokens=2))
    run.drain()
    assert [turn.segment for turn in run.reads] == [1, 2]
    assert run.ends["next"].reason == "length"


def test_a_lost_worker_has_nothing_in_its_room():
    room = Room(turning(60, {1: 30}))
    room.begin({0: 1})
    assert not room.is_there(0)
    assert [turn.segment for turn in room.take_wanted()] == [1]
    room.arrived(1, None)
    assert room.is_there(0)
    room.hold(0)
    room.forget()
    room.release(0)
    room.begin({0: 1})
    assert not room.is_there(0), "to be read again"
    assert [turn.segment for turn in room.take_wanted()] == [1]


def test_waiting_for_weights_is_counted():
    run = Turns(turning(60, {1: 30}), reading_steps=4)
    run.admit(request("a", [1], chain=0, max_tokens=2))
    run.drain()
    waited = run.scheduler.gauges().counts.residency_wait_s
    assert waited >= 4
    events, _ = next_step(run.scheduler, run.executor, run.now_s)
    assert not events
    assert run.scheduler.gauges().counts.residency_wait_s == waited
