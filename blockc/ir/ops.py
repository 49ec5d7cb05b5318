"""The ops that a structure may use, and the fake kernels of our own.

ATen ops pass through by name; ``blockc.*`` ops are ours: what they mean stands here, how they run is the runtime's.

=====================  =================================================================================
``blockc.linear``      ``(x, weight[out,in], bias | none, site)``: ``x W^T + b`` plus the sides at ``site``
``blockc.embedding``   ``(ids, weight[vocab,hidden], site)``
``blockc.rms_norm``    ``(x, weight, eps)``: in float32, cast back, then times ``weight``
``blockc.attention``   ``(q[1,H,T,D], k[1,K,T,D], v[1,K,T,D], scale, window | none, softcap | none) -> [1,T,H,D]``:
                       causal, per request, over the paged cache; writes the new keys and values first
``blockc.select_rows`` ``(x[1,T,F]) -> [1,R,F]``: the rows whose logits are wanted
=====================  =================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpSpec:
    """How many arguments an op takes."""

    min_args: int
    max_args: int


OPS: dict[str, OpSpec] = {
    "blockc.linear": OpSpec(4, 4),
    "blockc.embedding": OpSpec(3, 3),
    "blockc.rms_norm": OpSpec(3, 3),
    "blockc.attention": OpSpec(6, 6),
    "blockc.select_rows": OpSpec(1, 1),
    "aten.add.Tensor": OpSpec(2, 2),
    "aten.cat.default": OpSpec(2, 2),
    "aten.cos.default": OpSpec(1, 1),
    "aten.expand.default": OpSpec(2, 2),
    "aten.gelu.default": OpSpec(2, 2),
    "aten.layer_norm.default": OpSpec(5, 5),
    "aten.matmul.default": OpSpec(2, 2),
    "aten.mul.Tensor": OpSpec(2, 2),
    "aten.neg.default": OpSpec(1, 1),
    "aten.pow.Tensor_Scalar": OpSpec(2, 2),
    "aten.relu.default": OpSpec(1, 1),
    "aten.reshape.default": OpSpec(2, 2),
    "aten.silu.default": OpSpec(1, 1),
    "aten.sin.default": OpSpec(1, 1),
    "aten.slice.Tensor": OpSpec(4, 4),
    "aten.sub.Tensor": OpSpec(2, 2),
    "aten.tanh.default": OpSpec(1, 1),
    "aten.to.dtype": OpSpec(2, 2),
    "aten.transpose.int": OpSpec(3, 3),
    "aten.unsqueeze.default": OpSpec(2, 2),
}
