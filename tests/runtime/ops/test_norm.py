"""Norm and rotary embedding against their definitions; the whitelist of ops against torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc.ir.ops import OPS
from blockc_runtime.ops.aten import aten_function
from blockc_runtime.ops.norm import cpu, reference


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


@pytest.mark.parametrize("name", [name for name in OPS if name.startswith("aten.")])
def test_every_whitelisted_op_is_there(name: str) -> None:
    assert callable(aten_function(name))
