"""Alike steps taken at once leave nothing different: times, orders, counters, preemptions."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from blockc.simulate.instance import steps_before
from blockc.simulate.simulate import Run, simulate
from blockc.simulate.workload import HASH_BLOCK_TOKENS, Arrival, Workload
from tests.runtime.scheduler.harness import limits
from tests.simulate.fleets import fleet, in_a_room, taking_turns


@st.composite
def workloads(draw) -> Workload:
    """Some come together, some far apart; some follow others, and some answer at such length that pages run out."""
    arrivals: list[Arrival] = []
    for _ in range(draw(st.integers(1, 14))):
        app = draw(st.integers(0, 4))
        same_app = [index for index, item in enumerate(arrivals) if item.app == app]
        after = draw(st.sampled_from([None, None, *same_app]))
        said = 0 if after is None else arrivals[after].prompt_tokens + arrivals[after].output_tokens
        if any(item.after == after for item in arrivals if after is not None):
            after, said = None, 0
        arrivals.append(
            Arrival(
                at_s=draw(st.floats(0, 0.3, allow_subnormal=False)),
                app=app,
                prompt_tokens=said + draw(st.integers(1, 24)),
                output_tokens=draw(st.integers(1, 36)),
                after=after,
            )
        )
    return Workload(arrivals=tuple(arrivals), source="drawn")


plain_limits = st.builds(
    limits,
    pages=st.sampled_from([(40, 40), (18, 20), (60, 17)]),
    max_rows=st.sampled_from([3, 8]),
    max_batched_tokens=st.sampled_from([8, 32]),
    parts=st.sampled_from([1, 1, 4]),
    weights=st.sampled_from([(1.0, 1.0, 2.0), (1.0, 3.0, 0.7)]),
    windows=st.sampled_from([(None, None), (None, 8), (6, None)]),
    overlaps=st.booleans(),
)

targets = st.sampled_from([(), (0.02, 0.03, None, 0.01, 0.02, None)])
own_limits = st.builds(lambda own, due: replace(own, ttft_targets_s=due), plain_limits, targets)


def outcome(run: Run):
    served = [(item.number, item.first, item.end, item.tokens, item.cached_tokens, item.refusal) for item in run.served]
    instances = [
        (i.totals.busy, i.totals.steps, i.totals.tokens, i.totals.row_time, i.preemptions, i.side_loads)
        for i in run.instances
    ]
    return served, instances, run.placed, run.by_horizon, run.arrived


@settings(max_examples=60, deadline=None)
@given(
    workload=workloads(), own=own_limits, copies=st.sampled_from([1, 1, 2]), host_s=st.sampled_from([1e-4, 3e-3, 1e-2])
)
def test_folded_is_unfolded(workload, own, copies, host_s) -> None:
    """``host_s``: less, about as much and more than a decode step takes beside."""
    made = fleet(own, copies=copies)
    made = replace(
        made,
        instances=tuple(
            replace(item, pricer=item.pricer.at(replace(item.rates, step_s=host_s))) for item in made.instances
        ),
    )
    folded = simulate(made, workload)
    unfolded = simulate(made, workload, folds=False)
    assert outcome(folded) == outcome(unfolded)
    assert len(folded.served) == len(workload.arrivals)
    assert sum(i.totals.events for i in folded.instances) <= sum(i.totals.events for i in unfolded.instances)


@settings(max_examples=40, deadline=None)
@given(
    workload=workloads(),
    own=own_limits,
    slots=st.sampled_from([None, 1, 2, 3]),
    room=st.sampled_from([None, "tight", "wide"]),
)
def test_folded_is_unfolded_where_fine_tunes_take_turns(workload, own, slots, room) -> None:
    own = own if slots is None else taking_turns(own, slots)
    own = own if room is None else in_a_room(own, room)
    folded = simulate(fleet(own), workload)
    assert outcome(folded) == outcome(simulate(fleet(own), workload, folds=False))
    assert len(folded.served) == len(workload.arrivals)
    assert all(item.refusal is None for item in folded.served if item.tokens)


def test_a_fine_tune_is_awaited_once_and_put_in_a_slot() -> None:
    arrivals = tuple(Arrival(at_s=at_s, app=2, prompt_tokens=4, output_tokens=3) for at_s in (1.0, 2.0))
    own = taking_turns(limits(pages=(200, 200)), 1)
    run = simulate(fleet(own), Workload(arrivals=arrivals, source="twice"))
    always = simulate(fleet(limits(pages=(200, 200))), Workload(arrivals=arrivals, source="twice"))
    first, second = (item.first - run.arrived[item.number] for item in run.served)
    alone, _ = (item.first - always.arrived[item.number] for item in always.served)
    side_bytes = 2000  # of chain 2
    assert first - alone == side_bytes / 1e6 * 1e15 + side_bytes / 1e7 * 1e15
    assert second == alone
    assert run.instances[0].side_loads == 1


def test_others_go_on_while_a_fine_tune_is_read() -> None:
    arrivals = (
        Arrival(at_s=0.0, app=0, prompt_tokens=4, output_tokens=40),
        Arrival(at_s=0.001, app=4, prompt_tokens=4, output_tokens=2),
    )
    own = taking_turns(limits(pages=(200, 200)), 1)
    run = simulate(fleet(own), Workload(arrivals=arrivals, source="beside"))
    alone = simulate(fleet(own), Workload(arrivals=arrivals[:1], source="alone"))
    busy = run.instances[0].totals
    assert run.served[1].first > run.arrived[1] + 10**12
    assert busy.busy >= alone.instances[0].totals.busy
    assert busy.steps < alone.instances[0].totals.steps + 3  # they shared steps


def test_folding_takes_many_steps_at_once() -> None:
    run = simulate(
        fleet(limits(pages=(200, 200))),
        Workload(arrivals=(Arrival(at_s=0.0, app=0, prompt_tokens=4, output_tokens=50),), source="one"),
    )
    totals = run.instances[0].totals
    assert (totals.steps, totals.events) == (50, 2)
    assert totals.sampled_tokens == 50


def test_steps_that_overlap_are_folded_and_hide_the_host() -> None:
    workload = Workload(arrivals=(Arrival(at_s=0.0, app=0, prompt_tokens=4, output_tokens=50),), source="one")
    plain, overlapping = (
        simulate(fleet(limits(pages=(200, 200), overlaps=overlaps)), workload) for overlaps in (False, True)
    )
    totals = overlapping.instances[0].totals
    assert totals.steps == 50
    assert totals.events < 8
    constant = fleet(limits()).instances[0].pricer.constant(1)
    assert plain.served[0].end - overlapping.served[0].end == 49 * constant  # all but the first were issued in time
    assert plain.served[0].first == overlapping.served[0].first


def test_full_places_are_folded_while_others_wait() -> None:
    arrivals = tuple(Arrival(at_s=0.0, app=0, prompt_tokens=4, output_tokens=30) for _ in range(6))
    run = simulate(fleet(limits(max_rows=2, pages=(200, 200))), Workload(arrivals=arrivals, source="burst"))
    assert run.instances[0].totals.events < 20
    ends = [item.end for item in run.served]
    assert ends == sorted(ends)
    assert len(set(ends)) == 3


@settings(max_examples=200, deadline=None)
@given(span=st.integers(1, 10**6), price=st.integers(1, 10**4), growth=st.integers(0, 50))
@example(span=1, price=10, growth=0)
def test_steps_that_start_within_a_span(span, price, growth) -> None:
    start, count = 0, 0
    while start < span:
        start += price + growth * count
        count += 1
    assert steps_before(span, price, growth) == count


def test_blocks_of_a_trace_are_found_again() -> None:
    prompt = 2 * HASH_BLOCK_TOKENS + 5
    arrivals = tuple(
        Arrival(at_s=float(number), app=0, prompt_tokens=prompt, output_tokens=2, blocks=(7, 8, 9 + number))
        for number in range(3)
    )
    own = limits(pages=(900, 900), max_batched_tokens=2048)
    chains = tuple(_longer(chain) for chain in own.chains)
    run = simulate(fleet(replace(own, chains=chains)), Workload(arrivals=arrivals, source="blocks"))
    assert [item.cached_tokens for item in run.served] == [0, 2 * HASH_BLOCK_TOKENS, 2 * HASH_BLOCK_TOKENS]
    assert run.served[1].first - run.arrived[1] < run.served[0].first - run.arrived[0]


def test_a_turn_finds_what_was_said_and_comes_after_it() -> None:
    arrivals = (
        Arrival(at_s=0.0, app=0, prompt_tokens=8, output_tokens=8),
        Arrival(at_s=2.0, app=0, prompt_tokens=20, output_tokens=4, after=0),
    )
    run = simulate(fleet(), Workload(arrivals=arrivals, source="talk"))
    assert run.arrived[1] == run.served[0].end + 2 * 10**15
    assert run.served[1].cached_tokens == 12  # of 15 tokens with KV, whole pages of 4


def _longer(chain):
    return replace(chain, max_model_len=4096)
