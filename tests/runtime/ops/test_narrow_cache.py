"""Caches of e4m3: every form reads what is cached, of the tokens of its own launch too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from blockc_runtime.ops.attention import cpu, paged_cuda, reference
from blockc_runtime.ops.attention.batch import kv_batch
from blockc_runtime.ops.attention.cpu import PagedLayer
from blockc_runtime.ops.attention.narrow import FP8, FP8_MOST, as_cached, narrowed
from tests.runtime.executor.driver import Driver, new_zoo
from tests.runtime.executor.models import llama_spec, make_llama
from tests.runtime.executor.plans import PlanBuilder
from tests.runtime.ops.test_attention import Case, cases
from tests.support.device import DEVICE

ON = torch.device(DEVICE)


@pytest.mark.parametrize("attention", [cpu.attention, paged_cuda.attention], ids=["torch", "triton"])
@settings(max_examples=12, deadline=None)
@given(case=cases())
def test_equals_reference(attention: Callable[..., Tensor], case: Case) -> None:
    q, k, v, *caches = case.tensors(torch.float32)
    k[0, :, 0, 0] *= 1000  # what e4m3 cannot hold
    if attention is paged_cuda.attention and DEVICE == "cpu":
        # Triton's interpreter (3.6) rounds 1.97 to 1 in place of 2: what needs no rounding is all that it can show.
        k, v = as_cached(k, FP8), as_cached(v, FP8)
    keys, values = (narrowed(cache, FP8) for cache in caches)
    layer = PagedLayer(keys=keys.clone().to(ON), values=values.clone().to(ON), page_tokens=case.page_tokens)
    batch = kv_batch(case.rows, page_tokens=case.page_tokens, window=case.window, dtype=torch.float32, device=ON)
    sinks = None if case.sinks is None else case.sinks.to(ON)
    got = attention(q.to(ON), k.to(ON), v.to(ON), layer, batch, 0.3, case.window, case.softcap, sinks)
    wanted = reference.attention(
        q, k, v, keys=keys, values=values, rows=case.rows, page_tokens=case.page_tokens, scale=0.3,
        window=case.window, softcap=case.softcap, sinks=case.sinks,
    )  # fmt: skip
    torch.testing.assert_close(got.cpu(), wanted, rtol=1e-4, atol=1e-4)
    for one, other in ((layer.keys, keys), (layer.values, values)):
        assert torch.equal(one.cpu().view(torch.uint8), other.view(torch.uint8))


def test_what_it_cannot_hold_becomes_its_largest_number() -> None:
    x = torch.tensor([1e6, -1e6, float("inf"), float("nan"), 3.3])
    got = as_cached(x, FP8)
    assert got[:3].tolist() == [FP8_MOST, -FP8_MOST, FP8_MOST]
    assert torch.isnan(got[3])
    assert got[4] == 3.25
    assert as_cached(x, torch.float32) is x


@pytest.mark.parametrize("chunk", [2, 5, 100])
def test_an_answer_does_not_depend_on_how_its_prompt_is_cut(tmp_path: Path, chunk: int) -> None:
    """And is near that of a whole cache: the weights of this model are wide, so that the rounding is seen."""
    logits, sizes = [], []
    for dtype in ("F8_E4M3", "F32"):
        spec = llama_spec(make_llama())
        kv = tuple(layer.model_copy(update={"dtype": dtype}) for layer in spec.kv)
        builder = PlanBuilder(new_zoo(tmp_path / dtype))
        builder.add(type(spec)(**{**{name: getattr(spec, name) for name in spec.__slots__}, "kv": kv}))
        driver = Driver(builder.build(), builder.zoo)
        sequences = [driver.start(0, range(3, 20)) for _ in range(2)]
        driver.generate(sequences[:1], 1)
        driver.generate(sequences[1:], 1, chunk=chunk)
        whole, cut = (sequence.logits[0] for sequence in sequences)
        torch.testing.assert_close(cut, whole, rtol=1e-4, atol=2e-3 if dtype == "F8_E4M3" else 1e-4)
        logits.append(whole)
        model = driver.executor._model
        assert model is not None
        sizes.append(model.pools[0].memory.nbytes)
    assert 4 * sizes[0] == sizes[1]
    assert 0 < (logits[0] - logits[1]).norm() < 0.25 * logits[1].norm()
