"""A slow, obviously right way to run a chain: one request at a time, no cache, no batching, no packing.

Independent of the runtime: it shows that tracing, binding and sides mean what transformers and PEFT compute.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from blockc.graph import Block, Chain
from blockc.ir import DTYPE_NAME, Bound, DtypeArg, Param, Side, Symbol, TensorRef, Value
from blockc.zoo import Zoo


def logits(chain: Chain, zoo: Zoo, tokens: list[int]) -> torch.Tensor:
    """Logits ``[len(tokens), vocab]`` of one request."""
    runner = _Runner(zoo, len(tokens))
    step = {"tokens": torch.tensor([tokens]), "positions": torch.arange(len(tokens))[None]}
    context: tuple[torch.Tensor, ...] = ()
    if chain.path.prelude is not None:
        context = runner.run(chain.path.prelude, step, (), {})
    hidden = None
    for occurrence, block in enumerate(chain.path.blocks):
        sides = {side.site.name: side for side in chain.sides if side.site.occurrence == occurrence}
        inputs = step if hidden is None else {**step, "x": hidden}
        (hidden,) = runner.run(block, inputs, tuple(context[index] for index in block.contexts), sides)
    assert hidden is not None
    return hidden[0]


class _Runner:
    def __init__(self, zoo: Zoo, length: int) -> None:
        self.zoo = zoo
        self.length = length

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        stored = self.zoo.tensor(ref.digest)
        dtype = getattr(torch, DTYPE_NAME[stored.dtype])
        data = torch.from_numpy(np.frombuffer(stored.data, dtype=np.uint8).copy())
        return data.view(dtype).reshape(stored.shape)

    def run(
        self, block: Block, inputs: dict[str, torch.Tensor], context: tuple[torch.Tensor, ...], sides: dict[str, Side]
    ) -> tuple[torch.Tensor, ...]:
        values = {name: inputs[name] for name, _ in block.structure.inputs}
        values |= {name: value for (name, _), value in zip(block.structure.contexts, context, strict=True)}

        def get(arg: object) -> object:
            match arg:
                case Value(name):
                    return values[name]
                case Param(name):
                    return self.tensor(block.tensors[name])
                case Bound(name):
                    return block.binds[name]
                case Symbol():
                    return self.length
                case DtypeArg(code):
                    return getattr(torch, DTYPE_NAME[code])
                case tuple():
                    return [get(item) for item in arg]
                case _:
                    return arg

        for op in block.structure.ops:
            args = [get(arg) for arg in op.args]
            values[op.result] = self.call(op.target, args, sides)
        return tuple(values[name] for name in block.structure.returns)

    def call(self, target: str, args: list, sides: dict[str, Side]) -> torch.Tensor:
        match target:
            case "blockc.linear":
                x, weight, bias, site = args
                y = F.linear(x, weight, bias)
                if site in sides:
                    for term in sides[site].terms:
                        a, b = self.tensor(term["a"]), self.tensor(term["b"])
                        y = y + F.linear(F.linear(x, a), b) * term.scalar("scale")
                return y
            case "blockc.embedding":
                return F.embedding(args[0], args[1])
            case "blockc.rms_norm":
                x, weight, eps = args
                wide = x.float()
                return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
            case "aten.gelu.default":
                return F.gelu(args[0], approximate=args[1])
            case "blockc.select_rows":
                return args[0]
            case "blockc.encode":
                return self.attention(*args, causal=False)
            case "blockc.pool":
                x, mode = args
                return {"first": x[:, 0], "last": x[:, -1], "mean": x.mean(1), "sum": x.sum(1)}[mode]
            case "blockc.topk_values":
                return torch.topk(*args).values
            case "blockc.topk_indices":
                return torch.topk(*args).indices
            case "blockc.expert_linear":
                return expert_linear(*args)
            case "blockc.attention":
                return self.attention(*args)
            case _:
                namespace, name, overload = target.split(".")
                return getattr(getattr(getattr(torch.ops, namespace), name), overload)(*args)

    def attention(self, q, k, v, scale, window, softcap, sinks=None, *, causal=True) -> torch.Tensor:
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        scores = (q @ k.transpose(2, 3)) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        row, column = torch.arange(self.length)[:, None], torch.arange(self.length)[None]
        hidden = column > row if causal else torch.zeros(self.length, self.length, dtype=torch.bool)
        if window is not None:
            hidden = hidden | (column <= row - window if causal else (column - row).abs() >= window)
        scores = scores.masked_fill(hidden, float("-inf"))
        if sinks is not None:
            scores = torch.cat([scores, sinks.to(scores).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], 3)
        weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)[..., : self.length]
        return (weights @ v).transpose(1, 2)


def expert_linear(x, weight, bias, index) -> torch.Tensor:
    """Token by token, choice by choice."""
    out = torch.empty(*index.shape, weight.shape[1])
    for token, choices in enumerate(index.tolist()):
        for place, expert in enumerate(choices):
            one = x[token] if x.ndim == 2 else x[token, place]
            out[token, place] = F.linear(one, weight[expert], None if bias is None else bias[expert])
    return out
