"""Norm and rotary embedding on CUDA, where torch has a fused norm."""

from __future__ import annotations

from blockc_runtime.ops.norm.cpu import rms_norm, rotary

__all__ = ["rms_norm", "rotary"]
