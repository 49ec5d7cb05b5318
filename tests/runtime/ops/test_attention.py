"""Paged attention against its reference: any page order, any mix of rows, windows and caps."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blockc_runtime.ops.attention import reference
from blockc_runtime.ops.attention.batch import kv_batch
from blockc_runtime.ops.attention.cpu import PagedLayer, attention
from blockc_runtime.ops.attention.rows import KvRow

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    rows: tuple[KvRow, ...]
    heads: int
    kv_heads: int
    size: int
    pages: int
    page_tokens: int
    window: int | None
    softcap: float | None
    has_sinks: bool
    seed: int

    @property
    def sinks(self) -> Tensor | None:
        made = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(self.heads, generator=made) if self.has_sinks else None

    @property
    def tokens(self) -> int:
        return sum(row.count for row in self.rows)

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        made = torch.Generator().manual_seed(self.seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=made).to(dtype)

        slots = self.pages * self.page_tokens
        return (
            random(1, self.heads, self.tokens, self.size),
            random(1, self.kv_heads, self.tokens, self.size),
            random(1, self.kv_heads, self.tokens, self.size),
            random(slots, self.kv_heads, self.size),
            random(slots, self.kv_heads, self.size),
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    page_tokens = draw(st.sampled_from([1, 3, 4]))
    window = draw(st.sampled_from([None, 1, 5, 9]))
    shapes = draw(st.lists(st.tuples(st.integers(0, 30), st.sampled_from([1, 1, 2, 5, 11])), min_size=1, max_size=5))
    shapes.sort(key=lambda shape: shape[1] > 1)
    needed = [-(-(start + count) // page_tokens) for start, count in shapes]
    order = draw(st.permutations(range(sum(needed))))
    rows, first, taken = [], 0, 0
    for (start, count), pages in zip(shapes, needed, strict=True):
        table: list[int | None] = list(order[taken : taken + pages])
        if window is not None:  # pages that the window has passed are gone
            gone = max(0, start - window + 1) // page_tokens
            table[:gone] = [None] * gone
        rows.append(KvRow(first=first, count=count, start=start, pages=tuple(table)))
        first, taken = first + count, taken + pages
    kv_heads = draw(st.sampled_from([1, 2]))
    return Case(
        rows=tuple(rows),
        heads=kv_heads * draw(st.sampled_from([1, 3])),
        kv_heads=kv_heads,
        size=8,
        pages=sum(needed),
        page_tokens=page_tokens,
        window=window,
        softcap=draw(st.sampled_from([None, 2.0])),
        has_sinks=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


def run(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, keys, values = case.tensors(dtype)
    layer = PagedLayer(keys=keys, values=values, page_tokens=case.page_tokens)
    batch = kv_batch(case.rows, page_tokens=case.page_tokens, window=case.window, dtype=dtype, device=CPU)
    return attention(q, k, v, layer, batch, 0.3, case.window, case.softcap, case.sinks), keys, values


def expect(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, keys, values = case.tensors(dtype)
    out = reference.attention(
        q,
        k,
        v,
        keys=keys,
        values=values,
        rows=case.rows,
        page_tokens=case.page_tokens,
        scale=0.3,
        window=case.window,
        softcap=case.softcap,
        sinks=case.sinks,
    )
    return out, keys, values


@settings(max_examples=60, deadline=None)
@given(cases())
def test_equals_reference(case: Case) -> None:
    for got, wanted in zip(run(case, torch.float32), expect(case, torch.float32), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(cases())
def test_bfloat16_is_close_to_reference(case: Case) -> None:
    got, wanted = run(case, torch.bfloat16)[0], expect(case, torch.bfloat16)[0]
    torch.testing.assert_close(got.float(), wanted.float(), rtol=0.05, atol=0.05)


@settings(max_examples=20, deadline=None)
@given(cases(), st.sampled_from([float("nan"), float("inf")]))
def test_foreign_slots_are_not_read_into_a_row(case: Case, poison: float) -> None:
    """Whatever lies in pages of others changes nothing, as long as a row's own pages are clean."""
    q, k, v, keys, values = case.tensors(torch.float32)
    pages = case.pages + 2
    extra = torch.full((2 * case.page_tokens, case.kv_heads, case.size), poison)
    keys, values = torch.cat([keys, extra]), torch.cat([values, extra])
    layer = PagedLayer(keys=keys, values=values, page_tokens=case.page_tokens)
    assert keys.shape[0] == pages * case.page_tokens
    batch = kv_batch(
        case.rows,
        page_tokens=case.page_tokens,
        window=case.window,
        dtype=torch.float32,
        device=CPU,
    )
    got = attention(q, k, v, layer, batch, 0.3, case.window, case.softcap, case.sinks)
    torch.testing.assert_close(got, expect(case, torch.float32)[0], rtol=1e-5, atol=1e-5)


def test_rows_of_very_different_lengths_fall_into_buckets() -> None:
    lengths = [200, 3, 150, 90, 1]
    rows, first_page = [], 0
    for i, length in enumerate(lengths):
        pages = -(-length // 4)
        table = tuple(range(first_page, first_page + pages))
        rows.append(KvRow(first=i, count=1, start=length - 1, pages=table))
        first_page += pages
    batch = kv_batch(rows, page_tokens=4, window=None, dtype=torch.float32, device=CPU)
    assert [bucket.rows for bucket in batch.buckets] == [2, 1, 2]


def test_a_window_that_differs_from_the_groups_is_refused() -> None:
    rows = (KvRow(first=0, count=1, start=0, pages=(0,)),)
    batch = kv_batch(rows, page_tokens=4, window=4, dtype=torch.float32, device=CPU)
    x = torch.zeros(1, 1, 1, 8)
    layer = PagedLayer(keys=torch.zeros(4, 1, 8), values=torch.zeros(4, 1, 8), page_tokens=4)
    with pytest.raises(ValueError, match="window"):
        attention(x, x, x, layer, batch, 1.0, None, None)


def test_a_page_that_is_gone_is_never_written() -> None:
    rows = (KvRow(first=0, count=1, start=5, pages=(None, None)),)
    with pytest.raises(ValueError, match="window"):
        kv_batch(rows, page_tokens=4, window=2, dtype=torch.float32, device=CPU)
