"""Matrices of a base model as integers, with what that loses."""

from __future__ import annotations

from blockc.quantize.quantize import Quantization, Quantized, quantize

__all__ = ["Quantization", "Quantized", "quantize"]
