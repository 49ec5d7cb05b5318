"""Matrices to integers and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blockc.delta.integers import dequantized, quantize

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
FORMS = st.sampled_from([(4, 8), (4, 32), (8, 16), (8, 96)])


def values(seed: int, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(rows, 1, generator=generator) * 3
    return torch.randn(rows, columns, generator=generator) * spread


@given(form=FORMS, dtype=DTYPES, seed=st.integers(0, 20), rows=st.integers(1, 5))
def test_no_value_is_off_by_more_than_what_is_cut_off(form, dtype, seed, rows):
    bits, group = form
    value = values(seed, rows, 96)
    codes, scale = quantize(value, bits=bits, group=group, dtype=dtype)
    assert codes.shape == (rows, 96 * bits // 8)
    assert scale.shape == (rows, 96 // group)
    assert scale.dtype == dtype
    kept = dequantized(codes, scale, None, bits=bits, group=group)
    peak = value.view(rows, -1, group).abs().amax(2, keepdim=True).expand(-1, -1, group).flatten(1)
    # A step is a 2^bits-th of twice the peak; at 4 bits up to 3 tenths of the peak are cut off.
    allowed = peak * (2.0 ** (1 - bits) + (0.3 if bits == 4 else 2.0 ** (1 - bits))) * 1.02
    assert ((kept - value).abs() <= allowed + 1e-12).all()


@given(form=FORMS, seed=st.integers(0, 20))
def test_integers_of_integers_are_the_same(form, seed):
    bits, group = form
    kept = dequantized(*quantize(values(seed, 3, 96), bits=bits, group=group, dtype=torch.float32), None,
                       bits=bits, group=group)  # fmt: skip
    again = dequantized(*quantize(kept, bits=8, group=group, dtype=torch.float32), None, bits=8, group=group)
    assert (again - kept).norm() <= 0.01 * kept.norm() + 1e-9


def test_the_error_is_what_normal_values_lose():
    value = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    errors = {}
    for bits, group in ((8, 512), (8, 64), (4, 64), (4, 32)):
        kept = dequantized(*quantize(value, bits=bits, group=group, dtype=torch.bfloat16), None, bits=bits, group=group)
        errors[bits, group] = float((kept - value).norm() / value.norm())
    assert errors[8, 64] < errors[8, 512] < 0.01 < errors[4, 32] < errors[4, 64] < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zeros_stay_zero(dtype):
    codes, scale = quantize(torch.zeros(2, 16), bits=4, group=8, dtype=dtype)
    assert dequantized(codes, scale, None, bits=4, group=8).abs().max() == 0
