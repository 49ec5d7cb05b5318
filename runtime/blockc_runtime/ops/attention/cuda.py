"""Attention over the paged cache on CUDA where there is no Triton; `paged_cuda` is the fast form.

The CPU form holds: gathered pages and fused attention per bucket, query heads folded, so that one kernel serves all
rows of similar length.
"""

from __future__ import annotations

from blockc_runtime.ops.attention.cpu import attention

__all__ = ["attention"]
