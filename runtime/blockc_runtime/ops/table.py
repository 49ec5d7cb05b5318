"""Which function runs an op on which device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from blockc_runtime.native.library import kernels
from blockc_runtime.ops import triton_
from blockc_runtime.ops.attention import cpu as attention_cpu
from blockc_runtime.ops.attention import cuda as attention_cuda
from blockc_runtime.ops.attention import native as attention_native
from blockc_runtime.ops.cache import cpu as cache_cpu
from blockc_runtime.ops.cache import cuda as cache_cuda
from blockc_runtime.ops.embedding import cpu as embedding_cpu
from blockc_runtime.ops.experts import cpu as experts_cpu
from blockc_runtime.ops.experts import cuda as experts_cuda
from blockc_runtime.ops.integers import IntegerMatrix
from blockc_runtime.ops.linear import cpu as linear_cpu
from blockc_runtime.ops.linear import cuda as linear_cuda
from blockc_runtime.ops.linear import native as linear_native
from blockc_runtime.ops.norm import cpu as norm_cpu
from blockc_runtime.ops.norm import cuda as norm_cuda
from blockc_runtime.ops.norm import native as norm_native
from blockc_runtime.ops.residual import cpu as residual_cpu
from blockc_runtime.ops.residual import cuda as residual_cuda
from blockc_runtime.ops.residual import native as residual_native
from blockc_runtime.ops.sides import SideSet


@dataclass(frozen=True, slots=True, kw_only=True)
class OpTable:
    """The ops of one device. Signatures are those of the functions in the ``cpu`` modules.

    ``heads``: attention with what stands between it and linears, where there is a kernel for it. ``wait``: ops whose
    kernels may run later than they are called (`native.queue`).
    """

    attention: Callable[..., Tensor]
    linears: Callable[..., tuple[Tensor, ...]]
    expert_linear: Callable[[Tensor, Tensor | IntegerMatrix, Tensor | None, Tensor], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    gated: Callable[[Tensor, Tensor, str], Tensor]
    rotary: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    embedding: Callable[[Tensor, Tensor, SideSet], Tensor]
    residual: Callable[[Tensor, Tensor, SideSet], Tensor]
    cached: Callable[[Tensor, Tensor, SideSet], tuple[Tensor, Tensor]]
    heads: Callable[..., Tensor] | None = None
    wait: frozenset[Callable[..., Any]] = frozenset()


def op_table(device: torch.device) -> OpTable:
    """The fast forms for ``device``."""
    if device.type == "cuda":
        return _cuda()
    table = OpTable(
        attention=attention_cpu.attention,
        linears=linear_cpu.linears,
        expert_linear=experts_cpu.expert_linear,
        rms_norm=norm_cpu.rms_norm,
        gated=norm_cpu.gated,
        rotary=norm_cpu.rotary,
        embedding=embedding_cpu.embedding,
        residual=residual_cpu.residual,
        cached=cache_cpu.cached,
    )
    if kernels() is None:
        return table
    return replace(
        table,
        attention=attention_native.attention,
        linears=linear_native.linears,
        rms_norm=norm_native.rms_norm,
        gated=norm_native.gated,
        rotary=norm_native.rotary,
        residual=residual_native.residual,
        heads=attention_native.heads,
        wait=frozenset(
            {
                linear_native.linears,
                norm_native.rms_norm,
                norm_native.gated,
                residual_native.residual,
                attention_native.heads,
            }
        ),
    )


def _cuda() -> OpTable:
    """Triton's kernels, or torch's functions where there is no Triton: `triton_.describe` says which."""
    table = OpTable(
        attention=attention_cuda.attention,
        linears=linear_cuda.linears,
        expert_linear=experts_cuda.expert_linear,
        rms_norm=norm_cuda.rms_norm,
        gated=norm_cuda.gated,
        rotary=norm_cuda.rotary,
        embedding=embedding_cpu.embedding,
        residual=residual_cuda.residual,
        cached=cache_cuda.cached,
    )
    if triton_.problem() is not None:
        return table
    # Here alone: where Triton is missing, importing these fails.
    from blockc_runtime.ops.attention import paged_cuda
    from blockc_runtime.ops.linear import grouped_cuda
    from blockc_runtime.ops.norm import fused_cuda

    return replace(
        table,
        attention=paged_cuda.attention,
        heads=paged_cuda.heads,
        linears=grouped_cuda.linears,
        rms_norm=fused_cuda.rms_norm,
        gated=fused_cuda.gated,
    )
