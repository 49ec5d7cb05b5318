"""On CUDA as on any device: a copy for each row that stands at such positions."""

from __future__ import annotations

from blockc_runtime.ops.cache.cpu import cached

__all__ = ["cached"]
