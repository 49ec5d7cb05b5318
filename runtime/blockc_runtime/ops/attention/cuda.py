"""Attention over the paged cache on CUDA.

The CPU form holds: gathered pages and fused attention per bucket, query heads folded, so that one kernel serves all
rows of similar length. A paged kernel of our own will take its place.
"""

from __future__ import annotations

from blockc_runtime.ops.attention.cpu import attention

__all__ = ["attention"]
