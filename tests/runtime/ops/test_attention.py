"""Paged attention against its reference: any page order, any mix of rows, windows and caps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blockc_runtime.native import library
from blockc_runtime.ops.attention import cpu, native, reference
from blockc_runtime.ops.attention.batch import kv_batch
from blockc_runtime.ops.attention.cpu import PagedLayer
from blockc_runtime.ops.attention.rows import KvRow
from blockc_runtime.ops.cache.cpu import CachedKv, cached
from blockc_runtime.ops.norm import reference as norm
from blockc_runtime.ops.sides import SideSet, side_batch
from tests.support.native import LEVELS, using

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    rows: tuple[KvRow, ...]
    heads: int
    kv_heads: int
    size: int
    value_size: int
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
            random(1, self.kv_heads, self.tokens, self.value_size),
            random(slots, self.kv_heads, self.size),
            random(slots, self.kv_heads, self.value_size),
        )


def with_foreign_pages(pool: Tensor, case: Case, poison: float) -> Tensor:
    """And two pages of others, which nobody should read."""
    return torch.cat([pool, pool.new_full((2 * case.page_tokens, *pool.shape[1:]), poison)])


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
    size = draw(st.sampled_from([8, 16, 48, 64]))
    return Case(
        rows=tuple(rows),
        heads=kv_heads * draw(st.sampled_from([1, 3])),
        kv_heads=kv_heads,
        size=size,
        value_size=draw(st.sampled_from([size, size, 16, 48])),
        pages=sum(needed),
        page_tokens=page_tokens,
        window=window,
        softcap=draw(st.sampled_from([None, 2.0])),
        has_sinks=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


# Torch's own functions, and the kernels at each level of instructions that this CPU has.
FORMS = ("torch", *LEVELS)


def attention(form: str, *operands: Any) -> Tensor:
    if form == "torch":
        return cpu.attention(*operands)
    with using(form):
        return native.attention(*operands)


def run(form: str, case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, keys, values = case.tensors(dtype)
    layer = PagedLayer(keys=keys, values=values, page_tokens=case.page_tokens)
    batch = kv_batch(case.rows, page_tokens=case.page_tokens, window=case.window, dtype=dtype, device=CPU)
    return attention(form, q, k, v, layer, batch, 0.3, case.window, case.softcap, case.sinks), keys, values


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


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_equals_reference(form: str, case: Case) -> None:
    for got, wanted in zip(run(form, case, torch.float32), expect(case, torch.float32), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=10, deadline=None)
@given(case=cases())
def test_bfloat16_is_close_to_reference(form: str, case: Case) -> None:
    got, wanted = run(form, case, torch.bfloat16)[0], expect(case, torch.bfloat16)[0]
    torch.testing.assert_close(got.float(), wanted.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=60, deadline=None)
@given(case=cases(), turns=st.booleans(), has_sides=st.booleans())
def test_heads_are_the_same_in_one_call(level: str, case: Case, turns: bool, has_sides: bool) -> None:
    with using(level):
        check_heads(native.heads, case, turns, has_sides)


def check_heads(
    heads: Callable[..., Tensor], case: Case, turns: bool, has_sides: bool, device: torch.device = CPU
) -> None:
    """From what linears yield, side by side, with rotation and with keys and values of a fine-tune."""
    q, k, v, keys, values = case.tensors(torch.float32)
    made = torch.Generator().manual_seed(case.seed)
    angles = [torch.randn(1, 1, case.tokens, case.size, generator=made) for _ in range(2 if turns else 0)]
    joined = torch.cat([x[0].transpose(0, 1).flatten(1) for x in (q, k, v)], 1)[None]
    parts = joined.to(device).split_with_sizes([x.shape[1] * x.shape[3] for x in (q, k, v)], 2)
    if turns:
        q, k = norm.rotary(q, *angles), norm.rotary(k, *angles)
    sides: SideSet = ()
    if has_sides:
        own = [torch.randn(3, case.kv_heads, size, generator=made) for size in (case.size, case.value_size)]
        users = side_batch(
            [(row.count, 0 if i == 0 else None) for i, row in enumerate(case.rows)],
            device=CPU,
            positions=[row.start for row in case.rows],
        )
        k, v = cached(k, v, ((CachedKv(keys=(own[0],), values=(own[1],)), users),))
        sides = ((CachedKv(keys=(own[0].to(device),), values=(own[1].to(device),)), users),)
    wanted_keys, wanted_values = keys.clone(), values.clone()
    wanted = reference.attention(
        q, k, v, keys=wanted_keys, values=wanted_values, rows=case.rows, page_tokens=case.page_tokens, scale=0.3,
        window=case.window, softcap=case.softcap, sinks=case.sinks,
    )  # fmt: skip
    layer = PagedLayer(keys=keys.to(device), values=values.to(device), page_tokens=case.page_tokens)
    batch = kv_batch(case.rows, page_tokens=case.page_tokens, window=case.window, dtype=torch.float32, device=device)
    angles, sinks = [angle.to(device) for angle in angles], None if case.sinks is None else case.sinks.to(device)
    counts = case.heads, case.kv_heads
    got = heads(*parts, counts, angles, sides, layer, batch, 0.3, case.window, case.softcap, sinks)
    for one, other in ((got, wanted), (layer.keys, wanted_keys), (layer.values, wanted_values)):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=20, deadline=None)
@given(case=cases(), poison=st.sampled_from([float("nan"), float("inf")]))
def test_foreign_slots_are_not_read_into_a_row(form: str, case: Case, poison: float) -> None:
    """Whatever lies in pages of others changes nothing, as long as a row's own pages are clean."""
    q, k, v, keys, values = case.tensors(torch.float32)
    pages = case.pages + 2
    keys, values = (with_foreign_pages(own, case, poison) for own in (keys, values))
    layer = PagedLayer(keys=keys, values=values, page_tokens=case.page_tokens)
    assert keys.shape[0] == pages * case.page_tokens
    batch = kv_batch(
        case.rows,
        page_tokens=case.page_tokens,
        window=case.window,
        dtype=torch.float32,
        device=CPU,
    )
    got = attention(form, q, k, v, layer, batch, 0.3, case.window, case.softcap, case.sinks)
    torch.testing.assert_close(got, expect(case, torch.float32)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=30, deadline=None)
@given(
    starts=st.lists(st.sampled_from([0, 0, 5, 64, 130, 300]), min_size=1, max_size=3),
    count=st.sampled_from([1, 2, 17, 64, 65, 129, 200]),
    page_tokens=st.sampled_from([16, 16, 128]),
    group=st.sampled_from([1, 2, 4, 5]),
    sizes=st.sampled_from([(64, 64), (16, 32), (80, 48), (128, 128)]),
    window=st.sampled_from([None, None, 40, 150]),
    softcap=st.sampled_from([None, None, 5.0]),
    has_sinks=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 100),
)
def test_long_prompts(
    level: str, starts: list[int], count: int, page_tokens: int, group: int, sizes: tuple[int, int],
    window: int | None, softcap: float | None, has_sinks: bool, dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    """More keys and queries than a kernel takes at a time, against torch's functions in float32."""
    made, kv_heads = torch.Generator().manual_seed(seed), 2
    rows, first_page = [], 0
    for i, start in enumerate(starts):
        pages = -(-(start + count) // page_tokens)
        table: list[int | None] = list(range(first_page, first_page + pages))
        gone = 0 if window is None else max(0, start - window + 1) // page_tokens
        rows.append(KvRow(first=i * count, count=count, start=start, pages=(None,) * gone + tuple(table[gone:])))
        first_page += pages
    tokens, slots = count * len(rows), first_page * page_tokens
    key_size = sizes[0]
    shapes = [(1, 2 * group, tokens, key_size), *((1, kv_heads, tokens, size) for size in sizes)]
    shapes += [(slots, kv_heads, size) for size in sizes]
    q, k, v, keys, values = (torch.randn(shape, generator=made).to(dtype) for shape in shapes)
    form = (key_size**-0.5, window, softcap, torch.randn(2 * group, generator=made) if has_sinks else None)
    out = []
    for own, call in ((dtype, native.attention), (torch.float32, cpu.attention)):
        layer = PagedLayer(keys=keys.to(own, copy=True), values=values.to(own, copy=True), page_tokens=page_tokens)
        batch = kv_batch(rows, page_tokens=page_tokens, window=window, dtype=own, device=CPU)
        with using(level):
            out.append(call(q.to(own), k.to(own), v.to(own), layer, batch, *form).float())
    error = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(*out, rtol=error, atol=error)


@pytest.mark.skipif("avx512_bf16" not in LEVELS, reason="stands in for AMX")
def test_where_there_is_amx_torch_takes_plain_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    add_chunks = cpu.add_chunks
    monkeypatch.setattr(cpu, "add_chunks", lambda *operands: (taken.append(1), add_chunks(*operands)))
    amx = replace(library.load("avx512_bf16"), level="amx")
    monkeypatch.setattr(library, "_best", lambda: amx)
    made = torch.Generator().manual_seed(0)
    rows = (KvRow(first=0, count=1, start=2, pages=(0,)), KvRow(first=1, count=4, start=0, pages=(1,)))
    for dtype, softcap, wanted in ((torch.bfloat16, None, 1), (torch.bfloat16, 2.0, 0), (torch.float32, None, 0)):
        taken.clear()
        q, k, v = (torch.randn(1, 2, 5, 16, generator=made).to(dtype) for _ in range(3))
        pools = [torch.zeros(8, 2, 16, dtype=dtype) for _ in range(4)]
        batch = kv_batch(rows, page_tokens=4, window=None, dtype=dtype, device=CPU)
        layers = [PagedLayer(keys=pools[i], values=pools[i + 1], page_tokens=4) for i in (0, 2)]
        got = native.attention(q, k, v, layers[0], batch, 0.3, None, softcap)
        assert len(taken) == wanted
        torch.testing.assert_close(
            got, cpu.attention(q, k, v, layers[1], batch, 0.3, None, softcap), rtol=0.02, atol=0.02
        )


@pytest.mark.parametrize("form", FORMS)
def test_prompts_that_are_not_finite_stay_in_their_row(form: str) -> None:
    rows = tuple(KvRow(first=3 * i, count=3, start=0, pages=(i,)) for i in range(2))
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 6, 16, generator=made) for _ in range(3))
    k[0, 0, 4, 3] = float("nan")
    layer = PagedLayer(keys=torch.zeros(8, 1, 16), values=torch.zeros(8, 1, 16), page_tokens=4)
    batch = kv_batch(rows, page_tokens=4, window=None, dtype=torch.float32, device=CPU)
    out = attention(form, q, k, v, layer, batch, 0.3, None, None)
    assert torch.isfinite(out[0, :3]).all()
    assert torch.isnan(out[0, 4:]).all()


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


@pytest.mark.parametrize("form", FORMS)
def test_a_window_that_differs_from_the_groups_is_refused(form: str) -> None:
    rows = (KvRow(first=0, count=1, start=0, pages=(0,)),)
    batch = kv_batch(rows, page_tokens=4, window=4, dtype=torch.float32, device=CPU)
    x = torch.zeros(1, 1, 1, 16)
    layer = PagedLayer(keys=torch.zeros(4, 1, 16), values=torch.zeros(4, 1, 16), page_tokens=4)
    with pytest.raises(ValueError, match="window"):
        attention(form, x, x, x, layer, batch, 1.0, None, None)


def test_a_page_that_is_gone_is_never_written() -> None:
    rows = (KvRow(first=0, count=1, start=5, pages=(None, None)),)
    with pytest.raises(ValueError, match="window"):
        kv_batch(rows, page_tokens=4, window=2, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("form", FORMS)
def test_values_that_are_not_finite_stay_in_their_row(form: str) -> None:
    """A row with a NaN yields NaNs, by which its fault is found; its neighbour does not."""
    rows = tuple(KvRow(first=i, count=1, start=2, pages=(i,)) for i in range(2))
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 2, 16, generator=made) for _ in range(3))
    q[0, 0, 1, 3] = float("nan")
    layer = PagedLayer(keys=torch.zeros(8, 1, 16), values=torch.zeros(8, 1, 16), page_tokens=4)
    batch = kv_batch(rows, page_tokens=4, window=None, dtype=torch.float32, device=CPU)
    out = attention(form, q, k, v, layer, batch, 0.3, None, None)
    assert torch.isfinite(out[0, 0]).all()
    assert torch.isnan(out[0, 1]).all()
