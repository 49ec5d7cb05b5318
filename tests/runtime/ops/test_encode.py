"""Attention over whole texts and pooling equal their definitions, with several texts in a step."""

from __future__ import annotations

import pytest
import torch

from blockc_runtime.ops.encode import reference, torch_

_SPANS = ((0, 5), (5, 1), (6, 9))


def _qkv(heads=4, kv_heads=2, size=8, tokens=15):
    generator = torch.Generator().manual_seed(1)
    shapes = ((1, heads, tokens, size), (1, kv_heads, tokens, size), (1, kv_heads, tokens, size))
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_attention_equals_the_definition(window, softcap):
    args = (*_qkv(), _SPANS, 0.3, window, softcap)
    assert torch.allclose(torch_.encode(*args), reference.encode(*args), atol=1e-5)


@pytest.mark.parametrize("mode", ["first", "last", "mean", "sum"])
def test_pooling_equals_the_definition(mode):
    x = torch.randn(1, 15, 6, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(torch_.pool(x, _SPANS, mode), reference.pool(x, _SPANS, mode), atol=1e-6)


def test_a_pooling_that_is_not_there_is_no_pooling():
    with pytest.raises(ValueError, match="max"):
        torch_.pool(torch.zeros(1, 15, 6), _SPANS, "max")
