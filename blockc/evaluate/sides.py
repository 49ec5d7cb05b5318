"""Sides that are part of no tensor: rows of a table, bottlenecks at sums, cached keys and values.

In: the sides of a block. Out: what ops at such sites yield for one text that begins at position 0, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from blockc.graph import Block
from blockc.ir import Side, Term, Value
from blockc.tune.stored import read_tensor
from blockc.zoo import Zoo

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": torch.nn.GELU(approximate="tanh"),
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": functional.leaky_relu,
}
_KINDS = {"rows": "embed", "bottleneck": "residual", "cached": "cache"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """One term at an op. ``stream``: at a sum, the operand that is the residual stream."""

    term: Term
    tensors: Mapping[str, Tensor]
    stream: Value | None

    @property
    def codec(self) -> str:
        """The term's."""
        return self.term.codec

    def embedding(self, tokens: Tensor, table: Tensor) -> Tensor:
        """Rows of the table, or in their place the term's."""
        out = functional.embedding(tokens.clamp(max=len(table) - 1), table)
        index, weight = self.tensors["index"], self.tensors["weight"]
        replaced = (tokens[..., None] == index).int()
        return torch.where(replaced.any(-1, keepdim=True), weight[replaced.argmax(-1)], out)

    def cached(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``[1, K, T, D]`` with the term's at the first positions."""
        count = min(k.shape[2], len(self.tensors["keys"]))
        first = (self.tensors[role][:count].transpose(0, 1)[None] for role in ("keys", "values"))
        return tuple(torch.cat([own, all_[:, :, count:]], 2) for own, all_ in zip(first, (k, v), strict=True))  # type: ignore[return-value]

    def residual(self, stream: Tensor, value: Tensor) -> Tensor:
        """The sum with what the bottleneck adds."""
        held, scale = self.tensors, float(self.term.scalar("scale"))
        x = {"stream": stream, "sublayer": value, "sum": stream + value}[str(self.term.scalar("reads"))]
        activation = _ACTIVATIONS[str(self.term.scalar("activation"))]
        inner = activation(functional.linear(_norm(x, held, "before"), held["down"], held.get("down_bias")))
        return stream + value + _norm(functional.linear(inner, held["up"], held.get("up_bias")) * scale, held, "after")


def hooks_of(block: Block, sides: Sequence[Side], zoo: Zoo) -> tuple[dict[str, Hook], list[Side]]:
    """Hooks by the op's result, and what is left of the sides."""
    hooks: dict[str, Hook] = {}
    left = []
    for side in sides:
        place = block.places[side.site.name]
        own = [term for term in side.terms if _KINDS.get(term.codec) == place.kind]
        for term in own:
            (result,) = place.ops
            tensors = {role: wide(read_tensor(zoo, ref)) for role, ref in term.tensors}
            stream = None if place.stream is None else Value(place.stream)
            hooks[result] = Hook(term=term, tensors=tensors, stream=stream)
        rest = tuple(term for term in side.terms if term not in own)
        if rest:
            left.append(Side(site=side.site, terms=rest))
    return hooks, left


def _norm(x: Tensor, held: Mapping[str, Tensor], name: str) -> Tensor:
    if f"{name}_weight" not in held:
        return x
    return functional.layer_norm(x, x.shape[-1:], held[f"{name}_weight"], held[f"{name}_bias"])


def wide(tensor: Tensor) -> Tensor:
    """Floating-point values as float32."""
    return tensor.float() if tensor.is_floating_point() else tensor
