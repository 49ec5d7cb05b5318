"""Counting pages is naming them, where nobody else's pages can be found."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc.simulate.counted import CountedKv, is_countable
from blockc.simulate.simulate import simulate
from blockc.simulate.workload import Arrival, Workload
from blockc_runtime.limits import EngineLimits
from tests.runtime.scheduler.harness import limits
from tests.simulate.fleets import fleet
from tests.simulate.test_folding import outcome


def one_group(pages: int, **changed) -> EngineLimits:
    """Every chain in one group: the first, or the third."""
    own = limits(pages=(pages, pages), **changed)
    chains = tuple(
        replace(chain, groups=chain.groups[:1], domains=chain.domains[:1], virtual_tokens=()) for chain in own.chains
    )
    return replace(own, chains=chains)


arrivals = st.builds(
    Arrival,
    at_s=st.floats(0, 0.2, allow_subnormal=False),
    app=st.integers(0, 4),
    prompt_tokens=st.integers(1, 30),
    output_tokens=st.integers(1, 34),
)


@settings(max_examples=60, deadline=None)
@given(
    items=st.lists(arrivals, min_size=1, max_size=16), pages=st.sampled_from([17, 24, 60]), rows=st.sampled_from([4, 8])
)
def test_counted_is_named(items, pages, rows) -> None:
    own = one_group(pages, max_rows=rows)
    workload = Workload(arrivals=tuple(items), source="drawn")
    assert outcome(simulate(fleet(own), workload)) == outcome(simulate(fleet(own), workload, counts=False))


def test_a_preempted_request_finds_its_own_pages() -> None:
    items = tuple(Arrival(at_s=0.0, app=app, prompt_tokens=20, output_tokens=40) for app in (0, 1, 0, 1))
    own = one_group(24)
    run = simulate(fleet(own), Workload(arrivals=items, source="crowd"))
    assert run.instances[0].preemptions > 0
    assert outcome(run) == outcome(simulate(fleet(own), Workload(arrivals=items, source="crowd"), counts=False))


def test_what_cannot_be_counted_is_refused() -> None:
    assert not is_countable(limits())
    assert not is_countable(limits(windows=(8, None)))
    with pytest.raises(AssertionError):
        CountedKv(limits())
