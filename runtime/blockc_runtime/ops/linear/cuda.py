"""Linears with sides on CUDA: dense joined matrices and batched products. Untested on hardware so far."""

from __future__ import annotations

from blockc_runtime.ops.linear.cpu import linears

__all__ = ["linears"]
