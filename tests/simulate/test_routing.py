"""Instances that share apps: where requests go, and KV that travels between them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc.plan import RouteEntry
from blockc.simulate.simulate import Run, simulate
from blockc.simulate.workload import Arrival, Workload
from blockc_runtime.router import Link, Network, Route, planned_route
from tests.runtime.scheduler.harness import limits
from tests.simulate.fleets import fleet
from tests.simulate.test_folding import outcome

FAST, SLOW = Link(bytes_per_s=1e12, latency_s=1e-6), Link(bytes_per_s=1.0, latency_s=1.0)
LONG = 700


def own_limits(**changed):
    """Sequences long enough for beginnings that routers tell apart."""
    own = limits(pages=(900, 900), max_batched_tokens=256, **changed)
    return replace(own, chains=tuple(replace(chain, max_model_len=4096) for chain in own.chains))


def two(link: Link | None, **changed):
    network = Network(nodes=("a", "b"), within=None, between=link)
    own = fleet(own_limits(max_rows=2), copies=2, network=network)
    only_first = replace(own.apps[1], instances=(0,), shares=(1.0,))
    return replace(own, apps=(own.apps[0], only_first, *own.apps[2:]), **changed)


def crowd() -> Workload:
    """A conversation whose instance is full of others when its second turn comes."""
    talk = [
        Arrival(at_s=0.0, app=0, prompt_tokens=LONG, output_tokens=4),
        Arrival(at_s=0.5, app=0, prompt_tokens=LONG + 40, output_tokens=4, after=0),
    ]
    return Workload(arrivals=(*talk, *_others()), source="crowd")


def _others() -> list[Arrival]:
    return [Arrival(at_s=2.5 + 0.001 * i, app=1, prompt_tokens=300, output_tokens=900) for i in range(5)]


def turn(run: Run):
    return run.served[1]


@pytest.mark.parametrize(("link", "verdict"), [(FAST, "transfer"), (SLOW, "recompute"), (None, "recompute")])
def test_a_turn_leaves_a_busy_owner_by_price(link: Link | None, verdict: str) -> None:
    run = simulate(two(link), crowd())
    assert run.arrived[1] > run.arrived[6]
    assert (run.placed[0], run.placed[1]) == (0, 1)
    assert run.routed[verdict] == 1
    if verdict == "transfer":
        assert turn(run).cached_tokens > LONG - 140
        assert run.sent_bytes[0] > 0
    else:
        assert turn(run).cached_tokens == 0
        assert not any(run.sent_bytes)


def test_a_quiet_owner_keeps_its_conversation() -> None:
    talk = Workload(arrivals=crowd().arrivals[:2], source="talk")
    run = simulate(two(FAST), talk)
    assert run.placed[0] == run.placed[1]
    assert run.routed == {"fresh": 1, "owner": 1}
    assert turn(run).cached_tokens > LONG - 10
    blind = simulate(two(FAST, is_blind=True), talk)
    assert blind.routed == {"fresh": 2}
    assert blind.placed[0] != blind.placed[1]  # it was given to the other one, by turns
    assert turn(blind).cached_tokens == 0


talks = st.lists(
    st.tuples(st.floats(0, 0.4, allow_subnormal=False), st.integers(0, 4), st.integers(1, 400), st.integers(1, 30)),
    min_size=2, max_size=12,
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(
    talks=talks,
    link=st.sampled_from([FAST, SLOW, None]),
    windows=st.sampled_from([(None, None), (None, 8)]),
    copies=st.sampled_from([2, 3]),
)
def test_folded_is_unfolded_where_kv_travels(talks, link, windows, copies) -> None:
    arrivals: list[Arrival] = []
    last: dict[int, int] = {}
    for at_s, app, prompt, output in talks:
        after = last.get(app)
        said = 0 if after is None else arrivals[after].prompt_tokens + arrivals[after].output_tokens
        last[app] = len(arrivals)
        arrivals.append(Arrival(at_s=at_s, app=app, prompt_tokens=said + prompt, output_tokens=output, after=after))
    own = fleet(own_limits(max_rows=3, windows=windows), copies=copies, network=Network(
        nodes=tuple(map(str, range(copies))), between=link
    ))  # fmt: skip
    workload = Workload(arrivals=tuple(arrivals), source="drawn")
    folded, unfolded = (simulate(own, workload, folds=folds) for folds in (True, False))
    assert outcome(folded) == outcome(unfolded)
    assert (folded.routed, folded.sent_bytes) == (unfolded.routed, unfolded.sent_bytes)
    assert len(folded.served) == len(arrivals)
    assert sum(folded.routed.values()) == len(arrivals)


def test_a_plans_weights_are_the_shares_of_its_instances() -> None:
    """Two ways that begin at one instance count together; where nothing is said all count alike."""
    route = RouteEntry(chain=0, alternatives=((2,), (0, 1), (0, 3)), weights=(0.5, 0.3, 0.2))
    assert planned_route(route) == Route(instances=(0, 2), shares=(0.5, 0.5))
    assert planned_route(route.model_copy(update={"weights": ()})) == Route(instances=(0, 2), shares=(2.0, 1.0))
    read = planned_route(route.model_copy(update={"readers": (2,)}))
    assert read == Route(instances=(0,), shares=(0.5,), readers=(2,), reader_shares=(0.5,))
