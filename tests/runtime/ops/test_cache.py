"""Keys and values of the first positions, replaced."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc_runtime.ops.cache import cpu, reference
from blockc_runtime.ops.sides import side_batch

HEADS, SIZE = 2, 3
LENGTHS = (1, 5, 9)
CPU = torch.device("cpu")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 7), st.none() | st.integers(0, len(LENGTHS) - 1), st.integers(0, 12)),
        min_size=1, max_size=5,
    )
)  # fmt: skip
def test_every_row_at_its_own_positions(rows):
    tokens = sum(count for count, _, _ in rows)
    k, v = torch.randn(2, 1, tokens, HEADS, SIZE).transpose(2, 3)
    prefixes = [tuple(torch.randn(2, length, HEADS, SIZE)) for length in LENGTHS]
    batch = side_batch(
        [(count, slot) for count, slot, _ in rows], device=CPU, positions=[start for _, _, start in rows]
    )
    kept = k.clone(), v.clone()
    bank = cpu.CachedKv(keys=tuple(own[0] for own in prefixes), values=tuple(own[1] for own in prefixes))
    keys, values = cpu.cached(k, v, ((bank, batch),))
    positions = [start + i for count, _, start in rows for i in range(count)]
    own = [None if slot is None else prefixes[slot] for count, slot, _ in rows for _ in range(count)]
    wanted = reference.cached(k, v, positions, own)
    assert torch.equal(keys, wanted[0])
    assert torch.equal(values, wanted[1])
    assert torch.equal(k, kept[0]), "what was computed is left as it is"
    assert torch.equal(v, kept[1]), "what was computed is left as it is"


def test_rows_beyond_their_prefix_cost_nothing():
    k, v = torch.randn(2, 1, HEADS, 4, SIZE)
    bank = cpu.CachedKv(keys=(torch.randn(3, HEADS, SIZE),), values=(torch.randn(3, HEADS, SIZE),))
    keys, values = cpu.cached(k, v, ((bank, side_batch([(4, 0)], device=CPU, positions=[3])),))
    assert keys is k
    assert values is v
