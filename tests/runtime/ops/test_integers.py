"""Linears on matrices of integers against the matrix that the integers stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blockc.delta.integers import dequantized, quantize
from blockc_runtime.ops.experts import cpu as experts
from blockc_runtime.ops.integers import IntegerMatrix
from blockc_runtime.ops.linear.integers import IntegerWeights
from blockc_runtime.ops.linear.integers_cuda import KernelProduct
from tests.support.device import DEVICE

# In float32 what is left is the order of sums; in bfloat16 the kernels round in between.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
FORMS = [(8, 256, False), (8, 64, False), (8, 64, True), (4, 64, False), (4, 32, True), (4, 16, False)]


def matrix(
    out: int, columns: int, bits: int, group: int, shifted: bool, dtype: torch.dtype, seed: int = 0
) -> tuple[IntegerMatrix, Tensor]:
    """Integers, and what they stand for in float32."""
    torch.manual_seed(seed)
    codes, scale = quantize(torch.randn(out, columns), bits=bits, group=group, dtype=dtype)
    shift = 0.1 * torch.randn_like(scale) if shifted else None
    dense = dequantized(codes, scale, shift, bits=bits, group=group)
    on = [None if part is None else part.to(DEVICE) for part in (codes, scale, shift)]
    assert on[0] is not None
    assert on[1] is not None
    return IntegerMatrix(codes=on[0], scale=on[1], shift=on[2], bits=bits, group=group), dense


def close(ours: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert ours.dtype == dtype
    assert (ours.float().cpu() - wanted).norm() <= TOLERANCE[dtype] * wanted.norm() + 1e-6


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("bits", "group", "shifted"), FORMS)
# Of both sides of every threshold between kernels.
@pytest.mark.parametrize("rows", [0, 1, 5, 12, 13, 64, 65, 130])
def test_joined_linears(bits: int, group: int, shifted: bool, rows: int, dtype: torch.dtype) -> None:
    parts = [matrix(out, 256, bits, group, shifted, dtype, seed) for seed, out in enumerate((128, 64))]
    bias = torch.randn(128).to(dtype)
    weights = IntegerWeights([own for own, _ in parts], [bias.to(DEVICE), None])
    x = torch.randn(1, rows, 256).to(dtype)
    one, two = weights(x.to(DEVICE))
    close(one, x.float() @ parts[0][1].t() + bias.float(), dtype)
    close(two, x.float() @ parts[1][1].t(), dtype)
    assert weights.nbytes >= sum(own.nbytes for own, _ in parts)
    assert weights.nbytes < sum(dense.numel() for _, dense in parts) * 1.5


# Triton's interpreter knows no bfloat16 in products.
@pytest.mark.parametrize("dtype", [torch.float32, *([torch.bfloat16] if DEVICE == "cuda" else [])], ids=str)
@given(
    form=st.sampled_from(FORMS), rows=st.integers(1, 64), out=st.integers(1, 70), groups=st.integers(1, 4),
    seed=st.integers(0, 5),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_the_kernels(
    dtype: torch.dtype, form: tuple[int, int, bool], rows: int, out: int, groups: int, seed: int
) -> None:
    bits, group, shifted = form
    own, dense = matrix(out, 2 * groups * group, bits, group, shifted, dtype, seed)
    x = torch.randn(rows, 2 * groups * group).to(dtype)
    kernels = KernelProduct.of(own)
    assert kernels is not None
    close(kernels.few(x.to(DEVICE)), x.float() @ dense.t(), dtype)
    close(kernels.dense(out // 2, out, dtype), dense[out // 2 :], dtype)


def test_groups_that_are_too_small_for_the_kernels() -> None:
    own, _ = matrix(8, 32, 4, 8, False, torch.float32)
    assert KernelProduct.of(own) is None


def test_experts() -> None:
    parts = [matrix(48, 64, 4, 32, False, torch.float32, seed) for seed in range(3)]
    weight = IntegerMatrix(
        codes=torch.stack([own.codes for own, _ in parts]), scale=torch.stack([own.scale for own, _ in parts]),
        shift=None, bits=4, group=32,
    )  # fmt: skip
    x, index = torch.randn(7, 64), torch.randint(0, 3, (7, 2))
    dense = torch.stack([dense for _, dense in parts])
    close(
        experts.expert_linear(x.to(DEVICE), weight, None, index.to(DEVICE)),
        experts.expert_linear(x, dense, None, index),
        torch.float32,
    )
