"""Bytes per tenant: private, shared and fair shares, against their definitions."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockc.place.tenants import _a_minute, split_bytes
from blockc.plan import TenantEntry

SIZES = (1, 2, 3, 5, 7, 0, 64)
TENSORS = {f"tensor {index}": size for index, size in enumerate(SIZES)}
TAKEN = st.dictionaries(st.sampled_from("abcde"), st.sets(st.sampled_from(list(TENSORS))), max_size=5)


def total(tensors: set[str]) -> int:
    return sum(TENSORS[tensor] for tensor in tensors)


def split(taken: dict[str, set[str]]) -> dict[str, TenantEntry]:
    sizes = {tenant: {tensor: TENSORS[tensor] for tensor in sorted(tensors)} for tenant, tensors in taken.items()}
    return {entry.tenant: entry for entry in split_bytes(sizes, dict.fromkeys(taken, 9))}


@given(taken=TAKEN)
def test_shares(taken: dict[str, set[str]]) -> None:
    entries = split(taken)
    assert list(entries) == sorted(taken)
    everything = set().union(*taken.values())
    assert sum(entry.fair_bytes for entry in entries.values()) == total(everything)
    for name, entry in entries.items():
        others = set().union(*(tensors for other, tensors in taken.items() if other != name))
        assert entry.private_bytes == total(taken[name] - others), "what would go with the tenant"
        assert entry.shared_bytes == total(taken[name] & others)
        assert entry.private_bytes <= entry.fair_bytes <= entry.private_bytes + entry.shared_bytes
        assert entry.pm_bytes == 9


@given(taken=TAKEN)
def test_alike_tenants_differ_by_odd_bytes_only(taken: dict[str, set[str]]) -> None:
    """One byte at most for each set of tenants that takes tensors together."""
    entries = split(taken)
    sets = {tuple(sorted(name for name in taken if tensor in taken[name])) for tensor in TENSORS}
    for one in entries.values():
        for other in entries.values():
            if taken[one.tenant] == taken[other.tenant]:
                assert abs(one.fair_bytes - other.fair_bytes) <= len(sets)


@pytest.mark.parametrize(("a_second", "a_minute"), [("20", 1200), ("1/3", 20), ("0.999", 59), ("0.0001", 1)])
def test_quotas_are_whole_ones_a_minute(a_second: str, a_minute: int) -> None:
    assert _a_minute(Fraction(a_second)) == a_minute
    assert _a_minute(None) is None
