"""A chain as a function of tokens, run from its blocks: slow, in float32, one block's tensors in memory at a time.

In: a chain, the zoo with its tensors, token sequences. Out: logits of every token. Sides are folded into the tensors
of their block, so that what is evaluated is the function that the fine-tune means, whatever form it is kept in.
Nothing of the runtime is used, and the runtime is checked against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from blockc.evaluate.sides import Hook, hooks_of, wide
from blockc.graph import Block, Chain
from blockc.ir import DTYPE_NAME, Arg, Bound, DtypeArg, Op, Param, Side, Symbol, Value
from blockc.tune.folding import FOLDED, folded_bias, folded_tensors
from blockc.tune.stored import read_tensor
from blockc.zoo import Zoo


class NotEvaluatedError(ValueError):
    """A chain with a part that has no meaning for one text by itself, or none in weights."""


def logits(chain: Chain, zoo: Zoo, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Float32 logits ``[len(text), vocab]`` of each text by itself, after the chain's virtual tokens.

    Raises `NotEvaluatedError`, `DiagnosticError`.
    """
    texts = [(*chain.virtual_tokens, *text) for text in texts]
    steps = [{"tokens": torch.tensor([text]), "positions": torch.arange(len(text))[None]} for text in texts]
    contexts: list[tuple[Tensor, ...]] = [()] * len(texts)
    with torch.inference_mode():
        if chain.path.prelude is not None:
            prelude = _Bound.of(chain.path.prelude, (), zoo)
            contexts = [prelude.run(step, ()) for step in steps]
        states: list[Tensor | None] = [None] * len(texts)
        for occurrence, block in enumerate(chain.path.blocks):
            bound = _Bound.of(block, chain.sides_at.get(occurrence, ()), zoo)
            for index, (step, context) in enumerate(zip(steps, contexts, strict=True)):
                state = states[index]
                inputs = step if state is None else {**step, "x": state}
                (states[index],) = bound.run(inputs, tuple(context[place] for place in block.contexts))
    return [state[0, len(chain.virtual_tokens) :] for state in states if state is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bound:
    """A block with its tensors in float32. ``biases``: of linears whose structure has none, by site.

    ``hooks``: what of its sides is part of no tensor, by the result of the op.
    """

    block: Block
    tensors: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    hooks: Mapping[str, Hook]

    @classmethod
    def of(cls, block: Block, sides: Sequence[Side], zoo: Zoo) -> _Bound:
        tensors = {name: wide(read_tensor(zoo, ref)) for name, ref in block.tensors.items()}
        biases: dict[str, Tensor] = {}
        hooks, folded = hooks_of(block, sides, zoo)
        for side in folded:
            place = block.places[side.site.name]
            if not {term.codec for term in side.terms} <= FOLDED.get(place.kind, frozenset()):
                raise NotEvaluatedError(f"a side at {place.name}, a site of the kind {place.kind}")
            tensors |= folded_tensors(place, side, block.tensors, zoo)
            if place.kind == "linear" and place.bias is None:
                bias = folded_bias(side, None, zoo)
                biases |= {} if bias is None else {place.name: bias}
        return cls(block=block, tensors=tensors, biases=biases, hooks=hooks)

    def run(self, inputs: Mapping[str, Tensor], contexts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        structure = self.block.structure
        values = {name: inputs[name] for name, _ in structure.inputs}
        values |= {name: value for (name, _), value in zip(structure.contexts, contexts, strict=True)}
        length = inputs["tokens"].shape[1]
        for op in structure.ops:
            values[op.result] = self._call(op, [self._argument(arg, values, length) for arg in op.args])
        return tuple(values[name] for name in structure.returns)

    def _argument(self, arg: Arg, values: Mapping[str, Tensor], length: int) -> Any:
        match arg:
            case Value(name):
                return values[name]
            case Param(name):
                return self.tensors[name]
            case Bound(name):
                return self.block.binds[name]
            case Symbol():
                return length
            case DtypeArg(code):
                dtype: torch.dtype = getattr(torch, DTYPE_NAME[code])
                return torch.float32 if dtype.is_floating_point else dtype
            case tuple():
                return [self._argument(item, values, length) for item in arg]
            case _:
                return arg

    def _call(self, op: Op, args: list[Any]) -> Tensor:
        hook = self.hooks.get(op.result)
        match op.target:
            case "blockc.linear":
                y = functional.linear(*args[:3])
                return y + self.biases[args[3]] if args[3] in self.biases else y
            case "blockc.embedding":
                return functional.embedding(args[0], args[1]) if hook is None else hook.embedding(args[0], args[1])
            case "aten.add.Tensor" if hook is not None:
                return hook.residual(*(args[:2] if op.args[0] == hook.stream else args[1::-1]))
            case "blockc.rms_norm":
                return functional.rms_norm(args[0], args[1].shape, args[1], args[2])
            case "blockc.select_rows":
                return args[0]  # type: ignore[no-any-return]
            case "blockc.topk_values":
                return torch.topk(*args).values
            case "blockc.topk_indices":
                return torch.topk(*args).indices
            case "blockc.expert_linear":
                return _expert_linear(*args)
            case "blockc.attention":
                keys_values = args[1:3] if hook is None else hook.cached(*args[1:3])
                return _attention(args[0], *keys_values, *args[3:])
            case "aten.gelu.default":
                return functional.gelu(args[0], approximate=args[1])
            case "blockc.encode" | "blockc.pool":
                raise NotEvaluatedError("a text read as a whole")
            case _:
                namespace, name, overload = op.target.split(".")
                return getattr(getattr(getattr(torch.ops, namespace), name), overload)(*args)  # type: ignore[no-any-return]


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None = None,
) -> Tensor:
    """``[1, H, T, D]`` -> ``[1, T, H, D]``, causal, by its definition."""
    length, repeat = q.shape[2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = (q @ k.transpose(2, 3)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    row, column = torch.arange(length)[:, None], torch.arange(length)[None]
    hidden = column > row if window is None else (column > row) | (column <= row - window)
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], 3)
    return (scores.softmax(-1)[..., :length] @ v).transpose(1, 2)


def _expert_linear(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor) -> Tensor:
    """``x [T, in]`` or ``[T, k, in]``, ``weight [E, out, in]``, ``index [T, k]`` -> ``[T, k, out]``, by expert."""
    spread = x if x.ndim == 3 else x.unsqueeze(1).expand(-1, index.shape[1], -1)
    out = torch.empty(*index.shape, weight.shape[1])
    for expert in sorted(set(index.flatten().tolist())):
        chosen = index == expert
        out[chosen] = functional.linear(spread[chosen], weight[expert], None if bias is None else bias[expert])
    return out
