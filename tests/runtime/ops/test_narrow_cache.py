"""Caches of e4m3 and of whole numbers: every form reads what is cached, of the tokens of its own launch too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blockc_runtime.native import library
from blockc_runtime.native.library import DTYPES
from blockc_runtime.ops.attention import cpu, native, paged_cuda, reference
from blockc_runtime.ops.attention.batch import kv_batch
from blockc_runtime.ops.attention.cpu import PagedLayer
from blockc_runtime.ops.attention.narrow import FP8, FP8_MOST, INT8, as_cached, narrowed
from blockc_runtime.ops.attention.rows import KvRow
from blockc_runtime.ops.norm.native import rotary
from tests.runtime.executor.driver import Driver, new_zoo
from tests.runtime.executor.models import llama_spec, make_llama
from tests.runtime.executor.plans import PlanBuilder
from tests.runtime.ops.test_attention import Case, cases
from tests.support.caches import kept
from tests.support.device import DEVICE
from tests.support.native import LEVELS, using

ON, CPU = torch.device(DEVICE), torch.device("cpu")


def by_kernels(level: str) -> Callable[..., Tensor]:
    def attention(*operands: Any) -> Tensor:
        with using(level):
            return native.attention(*operands)

    return attention


FORMS = {"torch": cpu.attention, "triton": paged_cuda.attention, **{level: by_kernels(level) for level in LEVELS}}


def check_same(one: PagedLayer, other: PagedLayer) -> None:
    for a, b in zip((one.keys, one.values), (other.keys, other.values), strict=True):
        assert torch.equal(a.cpu().view(torch.uint8), b.cpu().view(torch.uint8))
    for c, d in zip(one.scales or (), other.scales or (), strict=True):
        assert torch.equal(c.cpu(), d.cpu())


@pytest.mark.parametrize("dtype", [FP8, INT8], ids=["fp8", "int8"])
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=12, deadline=None)
@given(case=cases())
def test_equals_reference(form: str, dtype: torch.dtype, case: Case) -> None:
    attention, on = FORMS[form], CPU if form in LEVELS else ON
    q, k, v, *caches = case.tensors(torch.float32)
    k[0, :, 0, 0] *= 1000  # what e4m3 cannot hold
    if form == "triton" and DEVICE == "cpu" and dtype == FP8:
        # Triton's interpreter (3.6) rounds 1.97 to 1 in place of 2: what needs no rounding is all that it can show.
        k, v = as_cached(k, FP8), as_cached(v, FP8)
    layer, plain = kept(caches, dtype, case.page_tokens, on), kept(caches, dtype, case.page_tokens)
    batch = kv_batch(case.rows, page_tokens=case.page_tokens, window=case.window, dtype=torch.float32, device=on)
    sinks = None if case.sinks is None else case.sinks.to(on)
    got = attention(q.to(on), k.to(on), v.to(on), layer, batch, 0.3, case.window, case.softcap, sinks)
    wanted = reference.attention(
        q, k, v, keys=plain.keys, values=plain.values, scales=plain.scales, rows=case.rows,
        page_tokens=case.page_tokens, scale=0.3, window=case.window, softcap=case.softcap, sinks=case.sinks,
    )  # fmt: skip
    torch.testing.assert_close(got.cpu(), wanted, rtol=1e-4, atol=1e-4)
    check_same(layer, plain)


@pytest.mark.parametrize("dtype", [FP8, INT8], ids=["fp8", "int8"])
@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=12, deadline=None)
@given(case=cases(), turns=st.booleans())
def test_one_call_of_kernels_writes_and_reads_it(level: str, dtype: torch.dtype, case: Case, turns: bool) -> None:
    """From what linears yield; rotated keys are rounded to the dtype of the model first, as those of torch are."""
    q, k, v, *caches = case.tensors(torch.bfloat16)
    made = torch.Generator().manual_seed(case.seed)
    angles = [torch.randn(1, 1, case.tokens, case.size, generator=made).bfloat16() for _ in range(2 if turns else 0)]
    parts = [x.transpose(1, 2).flatten(2) for x in (q, k, v)]
    counts, form = (case.heads, case.kv_heads), (0.3, case.window, case.softcap, case.sinks)
    batch = kv_batch(case.rows, page_tokens=case.page_tokens, window=case.window, dtype=torch.bfloat16, device=CPU)
    layers, out = [kept(caches, dtype, case.page_tokens) for _ in range(2)], []
    with using(level):
        out.append(native.heads(*parts, counts, angles, (), layers[0], batch, *form))
        if angles:
            q, k = (rotary(x, *angles, case.size // 2) for x in (q, k))
        out.append(cpu.attention(q, k, v, layers[1], batch, *form))
    torch.testing.assert_close(*out, rtol=0.05, atol=0.05)
    check_same(*layers)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_kernels_round_as_torch_does(level: str, dtype: torch.dtype) -> None:
    """Every bfloat16, and in float32 what lies around the middle of two numbers of e4m3."""
    x = torch.arange(1 << 16).to(torch.int32).to(torch.int16).view(torch.bfloat16)
    if dtype == torch.float32:
        codes = torch.arange(0x7E, dtype=torch.uint8).view(FP8).float()
        middle = (codes[1:] + codes[:-1]) / 2
        near = torch.cat([middle, middle * (1 + 1e-6), middle * (1 - 1e-6), codes])
        x = torch.cat([near, -near, torch.zeros(-2 * len(near) % 16)])
    x = x.view(1, 1, -1, 16)
    cache = torch.zeros(x.shape[2], 1, 16, dtype=FP8)
    slots = torch.arange(x.shape[2])
    own = library.load(level)
    own.write_cache(DTYPES[dtype], 1, x.data_ptr(), 16, 16, slots.data_ptr(), cache.data_ptr(), None, x.shape[2], 1, 16)
    got, wanted = (y.view(torch.uint8).view(-1) for y in (cache, narrowed(x, FP8)))
    number = ~torch.isnan(x.view(-1))
    assert torch.equal(got[number], wanted[number])
    assert (got[~number] & 0x7F == 0x7F).all()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("level", LEVELS)
def test_kernels_read_every_number(level: str, dtype: torch.dtype, count: int) -> None:
    """A value that is all that a token sees is what it gets; two tokens that see the same one are a prompt."""
    codes = torch.arange(256, dtype=torch.uint8).view(FP8)
    numbers = codes.float().nan_to_num(0.0).view(1, 1, 1, 256).expand(1, 1, count, 256).to(dtype)
    rows = (KvRow(first=0, count=count, start=0, pages=(0,)),)
    batch = kv_batch(rows, page_tokens=4, window=None, dtype=dtype, device=CPU)
    layer = PagedLayer(
        keys=torch.zeros(4, 1, 16, dtype=dtype).to(FP8), values=torch.zeros(4, 1, 256, dtype=dtype).to(FP8),
        page_tokens=4,
    )  # fmt: skip
    q, k = torch.ones(2, 1, 1, count, 16, dtype=dtype)
    with using(level):
        got = native.attention(q, k, numbers, layer, batch, 0.3, None, None)
    assert torch.equal(got[0, :, 0], numbers[0, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("form", ["torch", *LEVELS])
def test_whole_numbers_are_rounded_as_one_reads_it(form: str, dtype: torch.dtype) -> None:
    """By plain arithmetic: vectors of every size that there is, one of zeros, and some that are not finite."""
    made = torch.Generator().manual_seed(0)
    x = (torch.randn(60, 16, generator=made) * 10.0 ** torch.linspace(-30, 30, 60)[:, None]).to(dtype)
    x[3], x[5, 2], x[6, 0], x[7, 15] = 0, float("nan"), float("inf"), float("-inf")
    x[8] = torch.arange(16) * 127 / 15 - 127 + torch.tensor([0, 0.5] * 8)  # ties
    layer = kept([torch.zeros(60, 1, 16)] * 2, INT8, 4)
    assert layer.scales is not None
    if form == "torch":
        layer.write(torch.arange(60), x[:, None], x[:, None])
    else:
        slots = torch.arange(60)
        library.load(form).write_cache(
            DTYPES[dtype], 2, x.data_ptr(), 16, 16, slots.data_ptr(), layer.keys.data_ptr(), layer.scales[0].data_ptr(),
            60, 1, 16,
        )  # fmt: skip
    for row, codes, scale in zip(x.float(), layer.keys[:, 0], layer.scales[0][:, 0], strict=True):
        if not row.isfinite().all():
            assert torch.isnan(scale)
            assert not codes.any()
            continue
        assert float(scale) == pytest.approx(float(row.abs().max()) / 127, rel=1e-6)
        wanted = [round(float(value) / float(scale)) if scale else 0 for value in row.double()]
        off = (codes - torch.tensor(wanted)).abs()
        near = ((row.double() / scale.double()) % 1 - 0.5).abs() < 1e-4  # what lies in the middle but for rounding
        assert not off[~near].any()
        assert off.max() <= 1


@pytest.mark.parametrize("form", FORMS)
def test_a_key_that_is_not_finite_stays_in_its_row_and_can_be_erased(form: str) -> None:
    rows = tuple(KvRow(first=i, count=1, start=2, pages=(i,)) for i in range(2))
    on = CPU if form in LEVELS else ON
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 2, 16, generator=made).to(on) for _ in range(3))
    k[0, 0, 1, 3] = float("nan")
    layer = kept([torch.zeros(8, 1, 16)] * 2, INT8, 4, on)
    batch = kv_batch(rows, page_tokens=4, window=None, dtype=torch.float32, device=on)
    out = FORMS[form](q, k, v, layer, batch, 0.3, None, None, None)
    assert torch.isfinite(out[0, 0]).all()
    assert torch.isnan(out[0, 1]).all()
    layer.erase(torch.tensor([6], device=on))
    assert layer.scales is not None
    assert torch.isfinite(layer.scales[0]).all()


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8"])
@pytest.mark.parametrize("reused", [4, 8, 12])
def test_pages_that_are_reused_change_no_logit(tmp_path: Path, dtype: str, reused: int) -> None:
    """Whole pages that another request has written, and a prompt that is computed in the same pieces by itself."""
    driver = driver_of(tmp_path, dtype)
    prompt = list(range(3, 20))
    first, alone, again = (driver.start(0, prompt) for _ in range(3))
    driver.advance([(first, len(prompt))])
    driver.advance([(alone, reused)])
    again.pages[0] += first.pages[0][: reused // 4]
    again.cached = reused
    for sequence in (alone, again):
        driver.advance([(sequence, len(prompt) - reused)])
        for _ in range(2):
            driver.advance([(sequence, 1)])
    assert alone.tokens == again.tokens
    if DEVICE == "cpu":
        assert torch.equal(torch.stack(alone.logits), torch.stack(again.logits))
    else:  # products of more rows round otherwise there, and so did those that the other request has written
        torch.testing.assert_close(torch.stack(alone.logits), torch.stack(again.logits), rtol=1e-3, atol=1e-3)


def driver_of(root: Path, dtype: str) -> Driver:
    """A Llama in float32 with such a cache, pages of four tokens."""
    spec = llama_spec(make_llama())
    kv = tuple(layer.model_copy(update={"dtype": dtype}) for layer in spec.kv)
    builder = PlanBuilder(new_zoo(root / dtype))
    builder.add(replace(spec, kv=kv))
    return Driver(builder.build(), builder.zoo)


def test_what_it_cannot_hold_becomes_its_largest_number() -> None:
    x = torch.tensor([1e6, -1e6, float("inf"), float("nan"), 3.3])
    got = as_cached(x, FP8)
    assert got[:3].tolist() == [FP8_MOST, -FP8_MOST, FP8_MOST]
    assert torch.isnan(got[3])
    assert got[4] == 3.25
    assert as_cached(x, torch.float32) is x


@pytest.mark.parametrize(("narrow", "page_bytes", "most"), [("F8_E4M3", 1, 0.25), ("I8", 1 + 4 / 16, 0.02)])
@pytest.mark.parametrize("chunk", [2, 5, 100])
def test_an_answer_does_not_depend_on_how_its_prompt_is_cut(
    tmp_path: Path, chunk: int, narrow: str, page_bytes: float, most: float
) -> None:
    """And is near that of a whole cache: the weights of this model are wide, so that the rounding is seen."""
    logits, sizes = [], []
    for dtype in (narrow, "F32"):
        driver = driver_of(tmp_path, dtype)
        sequences = [driver.start(0, range(3, 20)) for _ in range(2)]
        driver.generate(sequences[:1], 1)
        driver.generate(sequences[1:], 1, chunk=chunk)
        whole, cut = (sequence.logits[0] for sequence in sequences)
        torch.testing.assert_close(cut, whole, rtol=1e-4, atol=2e-3 if dtype == narrow else 1e-4)
        logits.append(whole)
        model = driver.executor._model
        assert model is not None
        sizes.append(model.pools[0].nbytes)
    assert 4 * sizes[0] == page_bytes * sizes[1]
    assert 0 < (logits[0] - logits[1]).norm() < most * logits[1].norm()
