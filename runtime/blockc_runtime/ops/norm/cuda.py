"""Norm, gated activation and rotary embedding on CUDA, where torch has a fused norm."""

from __future__ import annotations

from blockc_runtime.ops.norm.cpu import gated, rms_norm, rotary

__all__ = ["gated", "rms_norm", "rotary"]
