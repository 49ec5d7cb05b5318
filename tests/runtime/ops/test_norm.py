"""Norm and rotary embedding against their definitions; the whitelist of ops against torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc.ir.ops import OPS
from blockc_runtime.ops.aten import aten_function
from blockc_runtime.ops.norm import cpu, fused_cuda, native, reference
from tests.support.device import DEVICE
from tests.support.native import LEVELS, using


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.floats(1e-8, 1e-2))
def test_rms_norm(tokens: int, hidden: int, eps: float) -> None:
    x, weight = torch.randn(1, tokens, hidden), torch.randn(hidden)
    torch.testing.assert_close(cpu.rms_norm(x, weight, eps), reference.rms_norm(x, weight, eps))
    low, low_weight = x.bfloat16(), weight.bfloat16()
    torch.testing.assert_close(
        cpu.rms_norm(low, low_weight, eps),
        reference.rms_norm(low, low_weight, eps),
        rtol=0.02,
        atol=0.02,
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 8))
def test_rotary(heads: int, tokens: int, half: int) -> None:
    x = torch.randn(1, tokens, heads, 2 * half).transpose(1, 2)
    cos, sin = torch.randn(2, 1, 1, tokens, 2 * half)
    wanted = reference.rotary(x, cos, sin)
    torch.testing.assert_close(cpu.rotary(x, cos, sin, half), wanted)


def test_gated() -> None:
    gate, up = torch.randn(2, 1, 3, 20)
    torch.testing.assert_close(cpu.gated(gate, up, "silu"), reference.gated(gate, up, "silu"))
    torch.testing.assert_close(cpu.gated(gate, up, "gelu_tanh"), reference.gated(gate, up, "gelu_tanh"))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@settings(max_examples=10, deadline=None)
@given(tokens=st.integers(0, 5), size=st.sampled_from([1, 5, 64, 200]), activation=st.sampled_from(cpu.GATES))
def test_kernels_for_cuda_equal_the_definitions(
    dtype: torch.dtype, error: float, tokens: int, size: int, activation: str
) -> None:
    made = torch.Generator().manual_seed(size)
    joined = torch.randn(1, tokens, size * 2, generator=made).to(dtype)
    gate, up = joined.split_with_sizes([size, size], 2)
    weight = torch.randn(size, generator=made).to(dtype)
    on = joined.to(DEVICE).split_with_sizes([size, size], 2)
    pairs = [
        (fused_cuda.rms_norm(on[0], weight.to(DEVICE), 1e-5), reference.rms_norm(gate, weight, 1e-5)),
        (fused_cuda.gated(*on, activation), reference.gated(gate, up, activation)),
    ]
    for got, wanted in pairs:
        torch.testing.assert_close(got.cpu(), wanted, rtol=error, atol=error)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 5), heads=st.integers(1, 3), size=st.sampled_from([1, 5, 16, 37, 64, 200]))
def test_kernels_equal_the_definitions(
    level: str, dtype: torch.dtype, error: float, tokens: int, heads: int, size: int
) -> None:
    """Whatever the operands' strides, and sizes that fill no register."""
    made = torch.Generator().manual_seed(size)
    joined = torch.randn(1, tokens, heads * size * 2, generator=made).to(dtype)
    wide = joined[:, :, : heads * size]
    weight = torch.randn(heads * size, generator=made).to(dtype)
    turned = wide.view(1, tokens, heads, size).transpose(1, 2)
    angles = torch.randn(2, 1, 1, tokens, size, generator=made).to(dtype)
    up = joined[:, :, heads * size :]
    with using(level):
        pairs = [
            (native.rms_norm(wide, weight, 1e-5), reference.rms_norm(wide, weight, 1e-5)),
            (native.rms_norm(turned, weight[:size], 1e-5), reference.rms_norm(turned, weight[:size], 1e-5)),
            (native.gated(wide, up, "silu"), reference.gated(wide, up, "silu")),
            (native.gated(turned, turned, "gelu_tanh"), reference.gated(turned, turned, "gelu_tanh")),
        ]
        if size % 2 == 0:
            pairs.append((native.rotary(turned, *angles, size // 2), reference.rotary(turned, *angles)))
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=error, atol=error)


@pytest.mark.parametrize("level", LEVELS)
def test_gates_at_their_ends(level: str) -> None:
    gate = torch.tensor([[-1e30, -200.0, -88.5, -20.0, 0.0, 20.0, 88.5, 200.0, 1e30, float("nan")]])
    with using(level):
        got = native.gated(gate, torch.ones_like(gate), "silu")
    torch.testing.assert_close(got, torch.nn.functional.silu(gate), rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", [name for name in OPS if name.startswith("aten.")])
def test_every_whitelisted_op_is_there(name: str) -> None:
    assert callable(aten_function(name))
