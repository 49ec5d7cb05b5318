"""Bottlenecks on CUDA: the form for any device, a product for each fine-tune in use."""

from __future__ import annotations

from blockc_runtime.ops.residual.cpu import residual

__all__ = ["residual"]
