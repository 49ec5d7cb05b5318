"""Triton's kernels of attention against the reference: the cases of `test_attention`, and contexts in parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blockc_runtime.ops.attention import cpu, paged_cuda, reference
from blockc_runtime.ops.attention.batch import KvBatch, PagedChunks, PagedRows, StaticBatch, kv_batch
from blockc_runtime.ops.attention.cpu import PagedLayer
from blockc_runtime.ops.attention.narrow import INT8
from blockc_runtime.ops.attention.rows import KvRow
from tests.runtime.ops.test_attention import Case, cases, check_heads, expect, with_foreign_pages
from tests.support.caches import kept
from tests.support.device import DEVICE

ON = torch.device(DEVICE)


def attention(q: Tensor, k: Tensor, v: Tensor, layer: PagedLayer, batch: KvBatch, *form: Any) -> Tensor:
    """On the device; operands and result are on the CPU."""
    keys, values = layer.keys.to(ON), layer.values.to(ON)
    moved = PagedLayer(keys=keys, values=values, page_tokens=layer.page_tokens)
    given = [own.to(ON) if isinstance(own, Tensor) else own for own in form]
    out = paged_cuda.attention(q.to(ON), k.to(ON), v.to(ON), moved, batch, *given)
    layer.keys.copy_(keys)
    layer.values.copy_(values)
    return out.cpu()


def run(case: Case, poison: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, keys, values = case.tensors(torch.float32)
    if poison is not None:  # pages of others
        keys, values = (with_foreign_pages(own, case, poison) for own in (keys, values))
    layer = PagedLayer(keys=keys, values=values, page_tokens=case.page_tokens)
    batch = kv_batch(case.rows, page_tokens=case.page_tokens, window=case.window, dtype=torch.float32, device=ON)
    out = attention(q, k, v, layer, batch, 0.3, case.window, case.softcap, case.sinks)
    used = case.pages * case.page_tokens
    return out, keys[:used], values[:used]


@pytest.mark.skipif(DEVICE != "cuda", reason="Triton's interpreter knows no bfloat16 in products")
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_bfloat16_is_close_to_reference(case: Case) -> None:
    q, k, v, keys, values = case.tensors(torch.bfloat16)
    layer = PagedLayer(keys=keys, values=values, page_tokens=case.page_tokens)
    batch = kv_batch(case.rows, page_tokens=case.page_tokens, window=case.window, dtype=torch.bfloat16, device=ON)
    got = attention(q, k, v, layer, batch, 0.3, case.window, case.softcap, case.sinks)
    torch.testing.assert_close(got.float(), expect(case, torch.bfloat16)[0].float(), rtol=0.05, atol=0.05)


@settings(max_examples=15, deadline=None)
@given(case=cases(), poison=st.sampled_from([None, float("nan"), float("inf")]))
def test_equals_reference(case: Case, poison: float | None) -> None:
    for got, wanted in zip(run(case, poison), expect(case, torch.float32), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(case=cases(), turns=st.booleans(), has_sides=st.booleans())
def test_heads_are_the_same_in_one_call(case: Case, turns: bool, has_sides: bool) -> None:
    check_heads(paged_cuda.heads, case, turns, has_sides, device=ON)


@pytest.mark.parametrize("window", [None, 150])
@pytest.mark.parametrize(("softcap", "has_sinks"), [(None, False), (2.0, True)])
def test_long_contexts_in_parts(
    monkeypatch: pytest.MonkeyPatch, window: int | None, softcap: float | None, has_sinks: bool
) -> None:
    """Rows of very different lengths, in as many parts as the longest takes: of the short ones some are empty."""
    launched = []

    class Counted:
        def __getitem__(self, grid: Any) -> Any:
            launched.append(grid)
            return plain[grid]

    plain = paged_cuda.join_parts
    monkeypatch.setattr(paged_cuda, "join_parts", Counted())
    lengths, rows, taken = [400, 1, 129], [], 0
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0)).tolist()
    for first, length in enumerate(lengths):
        pages = -(-length // 8)
        gone = 0 if window is None else max(0, length - window) // 8
        table = (*[None] * gone, *order[taken + gone : taken + pages])
        rows.append(KvRow(first=first, count=1, start=length - 1, pages=table))
        taken += pages
    case = Case(rows=tuple(rows), heads=6, kv_heads=2, size=16, value_size=16, pages=200, page_tokens=8, window=window,
                softcap=softcap, has_sinks=has_sinks, seed=3)  # fmt: skip
    for got, wanted in zip(run(case), expect(case, torch.float32), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert launched == [(3, 6)]


def static(batch: KvBatch) -> StaticBatch:
    """The same rows, as a recorded step has them: by whole numbers alone, and with room for more."""
    alone, several = batch.on_device, batch.chunks_on_device
    table = torch.cat([several.rows.long(), torch.tensor([[0, 0, 0, 0]] * (8 - several.count), device=ON)])
    return StaticBatch(
        slots=batch.slots,
        window=batch.window,
        on_device=PagedRows(rows=alone.rows.long(), pages=alone.pages.long(), longest=alone.longest),
        chunks_on_device=PagedChunks(rows=table, pages=several.pages.long()),
        chunked=sum(row.count for row in batch.rows[batch.singles :]),
    )


@pytest.mark.parametrize(
    ("dtype", "window", "softcap", "has_sinks", "is_static"),
    [
        (torch.float32, None, None, False, False),
        (torch.float32, 7, 2.0, False, False),
        (torch.float32, 7, None, False, True),
        (INT8, 30, None, True, False),
        (INT8, None, None, True, True),
    ],
)
def test_prompts_in_several_tiles_and_blocks(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    window: int | None,
    softcap: float | None,
    has_sinks: bool,
    is_static: bool,
) -> None:
    """Three query heads a KV head do not fill a tile; some prompts go on, one begins, beside a row of one token."""
    monkeypatch.setattr(paged_cuda, "_BLOCK", 16)
    shapes, rows, taken, first = [(33, 1), (0, 41), (50, 23), (7, 2)], [], 0, 0
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0)).tolist()
    for start, count in shapes:
        pages = -(-(start + count) // 4)
        gone = 0 if window is None else max(0, start - window + 1) // 4
        rows.append(
            KvRow(first=first, count=count, start=start, pages=(*[None] * gone, *order[taken + gone : taken + pages]))
        )
        first, taken = first + count, taken + pages
    case = Case(rows=tuple(rows), heads=6, kv_heads=2, size=16, value_size=48, pages=60, page_tokens=4, window=window,
                softcap=softcap, has_sinks=has_sinks, seed=5)  # fmt: skip
    q, k, v, *caches = case.tensors(torch.float32)
    out = []
    for form, on in ((paged_cuda.attention, ON), (cpu.attention, torch.device("cpu"))):
        layer = kept(caches, dtype, case.page_tokens, on)
        batch = kv_batch(case.rows, page_tokens=4, window=window, dtype=torch.float32, device=on)
        own = static(batch) if is_static and form is paged_cuda.attention else batch
        sinks = None if case.sinks is None else case.sinks.to(on)
        out.append(form(q.to(on), k.to(on), v.to(on), layer, own, 0.3, window, softcap, sinks).cpu())
    torch.testing.assert_close(*out, rtol=1e-4, atol=1e-4)


def test_an_odd_size_is_taken_by_torch() -> None:
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 1, 5, generator=made) for _ in range(3))
    rows = (KvRow(first=0, count=1, start=2, pages=(1,)),)
    keys, values = torch.randn(8, 2, 5, generator=made), torch.randn(8, 2, 5, generator=made)
    wanted = reference.attention(
        q,
        k,
        v,
        keys=keys.clone(),
        values=values.clone(),
        rows=rows,
        page_tokens=4,
        scale=0.3,
        window=None,
        softcap=None,
    )
    layer = PagedLayer(keys=keys, values=values, page_tokens=4)
    torch.testing.assert_close(attention(q, k, v, layer, batch_of(rows), 0.3, None, None), wanted)


def test_values_that_are_not_finite_stay_in_their_row() -> None:
    rows = tuple(KvRow(first=i, count=1, start=2, pages=(i,)) for i in range(2))
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 2, 16, generator=made) for _ in range(3))
    q[0, 0, 1, 3] = float("nan")
    layer = PagedLayer(keys=torch.zeros(8, 1, 16), values=torch.zeros(8, 1, 16), page_tokens=4)
    out = attention(q, k, v, layer, batch_of(rows), 0.3, None, None)
    assert torch.isfinite(out[0, 0]).all()
    assert torch.isnan(out[0, 1]).all()


def test_a_window_that_differs_from_the_groups_is_refused() -> None:
    rows = (KvRow(first=0, count=1, start=0, pages=(0,)),)
    x = torch.zeros(1, 1, 1, 16)
    layer = PagedLayer(keys=torch.zeros(4, 1, 16), values=torch.zeros(4, 1, 16), page_tokens=4)
    with pytest.raises(ValueError, match="window"):
        attention(x, x, x, layer, batch_of(rows), 1.0, 3, None)


def batch_of(rows: tuple[KvRow, ...]) -> KvBatch:
    return kv_batch(rows, page_tokens=4, window=None, dtype=torch.float32, device=ON)
