"""The sum of residual stream and sublayer with bottlenecks, on any device.

In: both operands, and for each bank its bottlenecks and who uses them. Out: the new stream. Invariant: equals
`reference.py`; without bottlenecks it is one addition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, leaky_relu, relu, silu

from blockc_runtime.ops.sides import SideBatch, SideSet

_EPS = 1e-5
# Tokens at a time: what a bottleneck needs for itself stays small beside what a step has anyway.
_AT_ONCE = 256


def _gelu_tanh(x: Tensor) -> Tensor:
    return gelu(x, approximate="tanh")


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": leaky_relu,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottlenecks:
    """One bank at one sum: ``down [N, hidden, b]``, ``up [N, b, hidden]`` and ``up_bias`` with the scale folded in.

    ``down_bias [N, b]``, ``up_bias [N, hidden]``; ``before`` and ``after``: weights and biases ``[N, hidden]`` of layer
    norms. ``activation`` and ``reads`` as in `blockc.ir.codecs`.
    """

    down: Tensor
    up: Tensor
    down_bias: Tensor | None
    up_bias: Tensor | None
    before: tuple[Tensor, Tensor] | None
    after: tuple[Tensor, Tensor] | None
    activation: str
    reads: str

    @property
    def nbytes(self) -> int:
        """Bytes of all stacks."""
        total = 0
        for item in fields(self):
            held = getattr(self, item.name)
            parts = held if isinstance(held, tuple) else (held,)
            total += sum(part.nbytes for part in parts if isinstance(part, Tensor))
        return total

    def change(self, x: Tensor, slot: int) -> Tensor:
        """What the bottleneck of a slot adds for ``x [n, hidden]``."""
        if self.before is not None:
            x = layer_norm(x, x.shape[-1:], self.before[0][slot], self.before[1][slot], _EPS)
        inner = _ACTIVATIONS[self.activation](_linear(x, self.down[slot], self.down_bias, slot))
        out = _linear(inner, self.up[slot], self.up_bias, slot)
        if self.after is not None:
            out = layer_norm(out, out.shape[-1:], self.after[0][slot], self.after[1][slot], _EPS)
        return out


def residual(stream: Tensor, value: Tensor, sides: SideSet) -> Tensor:
    """``stream`` and ``value [1, T, hidden]`` -> their sum, with bottlenecks for the tokens that have some."""
    out = torch.add(stream, value)
    for side, batch in sides:
        _apply(out[0], stream[0], value[0], side, batch)
    return out


def _apply(out: Tensor, stream: Tensor, value: Tensor, side: Bottlenecks, batch: SideBatch) -> None:
    source = {"sublayer": value, "stream": stream, "sum": out}[side.reads]
    for slot, places in batch.by_slot:
        for start in range(0, len(places), _AT_ONCE):
            piece = places[start : start + _AT_ONCE]
            out.index_add_(0, piece, side.change(source.index_select(0, piece), slot))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, slot: int) -> Tensor:
    return x @ weight if bias is None else torch.addmm(bias[slot], x, weight)
