"""Codecs keep to their budgets, say what they lose, and mean the same to the compiler and to the runtime."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc.delta import Encoded, choose
from blockc.delta.codecs import directions, encode_group_int, encode_sign
from blockc_runtime.ops.integers import IntegerMatrix
from blockc_runtime.ops.linear.changes import GroupIntChange, SignChange

SHAPES = st.tuples(st.integers(1, 24), st.sampled_from([8, 16, 24, 64, 96, 200]))


def change(shape: tuple[int, int], rank: int, noise: float, seed: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    low = torch.randn(shape[0], rank, generator=made) @ torch.randn(rank, shape[1], generator=made)
    return 0.01 * (low + noise * torch.randn(shape, generator=made))


changes = st.builds(change, SHAPES, st.integers(1, 4), st.floats(0, 2), st.integers(0, 10**6))


@settings(max_examples=60, deadline=None)
@given(change=changes, max_error=st.floats(0.001, 0.9))
def test_a_choice_keeps_to_its_budget_and_saves(change: torch.Tensor, max_error: float) -> None:
    base = torch.randn(change.shape, generator=torch.Generator().manual_seed(1))
    found = choose(base, base + change, max_error=max_error, dtype=torch.float32)
    if found is None:
        return
    wanted = (base + change) - base
    rest = wanted - sum(term.decoded() for term in found.terms)
    assert float(rest.norm() / wanted.norm()) == pytest.approx(found.lost, rel=1e-3, abs=1e-6)
    assert found.lost <= max_error
    assert found.nbytes == sum(t.nbytes for term in found.terms for t in term.tensors.values())
    assert found.nbytes < change.numel() * 4


@settings(max_examples=30, deadline=None)
@given(change=changes, budgets=st.tuples(st.floats(0.001, 0.9), st.floats(0.001, 0.9)))
def test_a_larger_budget_costs_no_more(change: torch.Tensor, budgets: tuple[float, float]) -> None:
    base = torch.zeros_like(change)
    tight, loose = (choose(base, change, max_error=budget, dtype=torch.float32) for budget in sorted(budgets))
    if tight is not None:
        assert loose is not None
        assert loose.nbytes <= tight.nbytes


@pytest.mark.parametrize(
    ("bits", "sparse", "most"), [(8, False, 0.01), (4, False, 0.2), (8, True, 0.6), (4, True, 0.65)]
)
def test_integers_lose_what_their_width_must(bits: int, sparse: bool, most: float) -> None:
    value = torch.randn(64, 256, generator=torch.Generator().manual_seed(3))
    encoded = encode_group_int(value, bits=bits, sparse=sparse)
    assert encoded is not None
    assert float((encoded.decoded() - value).norm() / value.norm()) < most
    if sparse:
        assert int((encoded.decoded().view(64, 64, 4) != 0).sum(2).max()) <= 2


def test_columns_that_have_no_groups() -> None:
    assert encode_group_int(torch.randn(4, 7), bits=4) is None


def test_large_matrices_are_searched_at_random_and_alike_each_time() -> None:
    value = change((600, 700), 3, 0.01, 5)
    one, two = (directions(value, 16) for _ in range(2))
    assert torch.equal(one.u, two.u)
    exact = torch.linalg.svdvals(value)[:3]
    torch.testing.assert_close(one.s[:3], exact, rtol=1e-3, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(change=changes, rows=st.integers(0, 5), kind=st.sampled_from(["sign", "8", "4", "8 of 2:4", "4 of 2:4"]))
def test_the_runtime_adds_what_is_decoded(change: torch.Tensor, rows: int, kind: str) -> None:
    encoded: Encoded | None = encode_sign(change)
    if kind != "sign":
        encoded = encode_group_int(change, bits=int(kind[0]), sparse="of" in kind)
    assert encoded is not None
    x, y = torch.randn(rows, change.shape[1]), torch.randn(rows, change.shape[0])
    wanted = y + x @ encoded.decoded().t()
    tensors = dict(encoded.tensors)
    if kind == "sign":
        term: SignChange | GroupIntChange = SignChange(**tensors, columns=change.shape[1])
    else:
        index = tensors.pop("index", None)
        bits, group = int(encoded.scalars["bits"]), int(encoded.scalars["group"])
        kept = IntegerMatrix(
            codes=tensors["codes"], scale=tensors["scale"].float(), shift=None, bits=bits,
            group=group if index is None else group // 2,
        )  # fmt: skip
        term = GroupIntChange(kept=kept, index=index)
    term.add_to(y, x)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)
