"""Blocks are divided into stages as well as can be: compared with trying all divisions."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from blockc.place.stages.partition import partition


@settings(max_examples=150, deadline=None)
@given(
    blocks=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=8),
    stages=st.integers(1, 5),
    room=st.integers(1, 40),
    shared=st.booleans(),
)
def test_a_division_is_the_best_of_all(blocks, stages, room, shared) -> None:
    def cost(first: int, stop: int) -> int | None:
        """Bytes of which two blocks may share one, as tied tensors do, and time beside them."""
        nbytes = sum(own for own, _ in blocks[first:stop]) - (shared and first == 0 and stop == len(blocks))
        return sum(own for _, own in blocks[first:stop]) if nbytes <= room else None

    every = [(0, *cuts, len(blocks)) for cuts in itertools.combinations(range(1, len(blocks)), stages - 1)]
    costs = [[cost(a, b) for a, b in itertools.pairwise(begins)] for begins in every]
    best = min((max(own) for own in costs if None not in own), default=None)
    found = partition(len(blocks), stages, cost)
    assert (found is None) == (best is None)
    if found is not None:
        assert len(found) == stages + 1
        assert list(found) == sorted(set(found))
        assert max(cost(a, b) for a, b in itertools.pairwise(found)) == best
