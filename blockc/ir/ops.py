"""The ops that a structure may use, and what those of ours mean.

ATen ops pass through by name. All of them work on each token for itself: none may sum, sort or move the token axis
(`blockc.trace.independence` checks the dimension that is named). How ours run is the runtime's.

=======================  ===============================================================================
``blockc.linear``        ``(x, weight[out,in], bias | none, site | none)``: ``x W^T + b`` plus the sides at ``site``
``blockc.expert_linear`` ``(x[T,in] or [T,k,in], weight[E,out,in], bias[E,out] | none, index[T,k]) -> [T,k,out]``: for
                         each token and choice ``x W[index]^T + b[index]`` (mixture of experts)
``blockc.embedding``     ``(ids, weight[vocab,hidden], site)``
``blockc.rms_norm``      ``(x, weight, eps)``: in float32, cast back, then times ``weight``
``blockc.topk_values``   ``(x, k)``: the k largest along the last axis, as ``torch.topk`` orders them
``blockc.topk_indices``  ``(x, k)``: where they stand
``blockc.attention``     ``(q[1,H,T,D], k[1,K,T,D], v[1,K,T,D], scale, window | none, softcap | none, sinks[H]?)
                         -> [1,T,H,D]``: causal, per request, over the paged cache; writes the new keys and values
                         first. ``sinks``: a score of each head's own beside those of the keys, whose weight is lost
``blockc.encode``        ``(q, k, v, scale, window | none, softcap | none)``, shapes as above: attention in both
                         directions within a text, which stands in the step as a whole; no cache. With a
                         window, tokens see each other that are less than so far apart
``blockc.pool``          ``(x[1,T,F], mode) -> [R,F]``: of each text the ``"first"`` or ``"last"`` token, the ``"mean"``
                         or the ``"sum"`` of all
``blockc.select_rows``   ``(x[1,T,F]) -> [1,R,F]``: the rows whose logits are wanted
=======================  ===============================================================================
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
    "blockc.expert_linear": OpSpec(4, 4),
    "blockc.embedding": OpSpec(3, 3),
    "blockc.rms_norm": OpSpec(3, 3),
    "blockc.topk_indices": OpSpec(2, 2),
    "blockc.topk_values": OpSpec(2, 2),
    "blockc.attention": OpSpec(6, 7),
    "blockc.encode": OpSpec(6, 6),
    "blockc.pool": OpSpec(2, 2),
    "blockc.select_rows": OpSpec(1, 1),
    "aten.abs.default": OpSpec(1, 1),
    "aten.add.Tensor": OpSpec(2, 2),
    "aten.amax.default": OpSpec(3, 3),
    "aten.bitwise_not.default": OpSpec(1, 1),
    "aten.cat.default": OpSpec(2, 2),
    "aten.clamp.default": OpSpec(3, 3),
    "aten.cos.default": OpSpec(1, 1),
    "aten.div.Tensor": OpSpec(2, 2),
    "aten.eq.Scalar": OpSpec(2, 2),
    "aten.exp.default": OpSpec(1, 1),
    "aten.expand.default": OpSpec(2, 2),
    "aten.expm1.default": OpSpec(1, 1),
    "aten.floor.default": OpSpec(1, 1),
    "aten.full_like.default": OpSpec(2, 2),
    "aten.gather.default": OpSpec(3, 3),
    "aten.ge.Scalar": OpSpec(2, 2),
    "aten.gelu.default": OpSpec(2, 2),
    "aten.gt.Scalar": OpSpec(2, 2),
    "aten.layer_norm.default": OpSpec(5, 5),
    "aten.le.Scalar": OpSpec(2, 2),
    "aten.log.default": OpSpec(1, 1),
    "aten.log1p.default": OpSpec(1, 1),
    "aten.logical_not.default": OpSpec(1, 1),
    "aten.lt.Scalar": OpSpec(2, 2),
    "aten.masked_fill.Scalar": OpSpec(3, 3),
    "aten.matmul.default": OpSpec(2, 2),
    "aten.maximum.default": OpSpec(2, 2),
    "aten.mean.dim": OpSpec(3, 3),
    "aten.minimum.default": OpSpec(2, 2),
    "aten.mul.Tensor": OpSpec(2, 2),
    "aten.ne.Scalar": OpSpec(2, 2),
    "aten.neg.default": OpSpec(1, 1),
    "aten.permute.default": OpSpec(2, 2),
    "aten.pow.Tensor_Scalar": OpSpec(2, 2),
    "aten.reciprocal.default": OpSpec(1, 1),
    "aten.relu.default": OpSpec(1, 1),
    "aten.reshape.default": OpSpec(2, 2),
    "aten.rms_norm.default": OpSpec(4, 4),
    "aten.rsqrt.default": OpSpec(1, 1),
    "aten.rsub.Scalar": OpSpec(2, 2),
    "aten.scatter.src": OpSpec(4, 4),
    "aten.scatter.value": OpSpec(4, 4),
    "aten.select.int": OpSpec(3, 3),
    "aten.sigmoid.default": OpSpec(1, 1),
    "aten.silu.default": OpSpec(1, 1),
    "aten.sin.default": OpSpec(1, 1),
    "aten.slice.Tensor": OpSpec(4, 5),
    "aten.softmax.int": OpSpec(2, 2),
    "aten.softplus.default": OpSpec(3, 3),
    "aten.sqrt.default": OpSpec(1, 1),
    "aten.square.default": OpSpec(1, 1),
    "aten.stack.default": OpSpec(2, 2),
    "aten.sub.Tensor": OpSpec(2, 2),
    "aten.sum.dim_IntList": OpSpec(3, 3),
    "aten.tanh.default": OpSpec(1, 1),
    "aten.to.dtype": OpSpec(2, 2),
    "aten.transpose.int": OpSpec(3, 3),
    "aten.unsqueeze.default": OpSpec(2, 2),
    "aten.where.self": OpSpec(3, 3),
}
