"""Normal form keeps what a graph computes, and whatever could mix the tokens of two requests is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blockc.trace import UntraceableError
from blockc.trace.independence import check_token_independence
from blockc.trace.nodes import aten
from blockc.trace.normalize import normalize


class _Module(nn.Module):
    def __init__(self, compute):
        super().__init__()
        self.compute = compute

    def forward(self, x):
        return self.compute(x)


def _graph(compute):
    """``compute`` of ``x [1,T,6]``, in normal form."""
    x = torch.zeros(1, 7, 6)
    dim = torch.export.Dim("T", min=2, max=1 << 20)
    with torch.no_grad():
        program = torch.export.export(_Module(compute), (x,), dynamic_shapes=({1: dim},), strict=False)
    normalize(program.graph)
    return program.graph


def _run(graph, x):
    """The graph's ops one after the other; ``"T"`` is the number of tokens."""
    values = {}

    def get(arg):
        if isinstance(arg, torch.fx.Node):
            return values[arg]
        if isinstance(arg, list | tuple):
            return [x.shape[1] if item == "T" else get(item) for item in arg]
        return arg

    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = x
        elif node.op == "call_function":
            values[node] = node.target(*(get(arg) for arg in node.args))
        else:
            return get(node.args)[0][0]
    return None


def _in_place(x):
    y = x * 2
    y /= 4
    y.add_(1)
    return y.sin()


def _joined(x):
    y = x.new_empty(1, x.shape[1], 9)
    y[..., 3:].copy_(x)
    y[..., :3].copy_(x[..., :1])
    return y * 2


KEPT = {
    "repeated elements": lambda x: x.repeat_interleave(2, dim=-1),
    "repeated axis": lambda x: x.repeat(1, 1, 3),
    "every other": lambda x: torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2),
    "parts": lambda x: torch.cat([part * index for index, part in enumerate(x.chunk(3, -1))], -1),
    "unbound": lambda x: sum(x.unflatten(-1, (3, 2)).unbind(-1)),
    "in place": _in_place,
    "assembled": _joined,
    "softmax in float64": lambda x: torch.softmax(x, -1, dtype=torch.float64).float(),
    "constants": lambda x: torch.where(x > 0, torch.ones_like(x), torch.zeros_like(x)),
}


@pytest.mark.parametrize("case", KEPT)
def test_normal_form_computes_the_same(case):
    compute = KEPT[case]
    graph = _graph(compute)
    check_token_independence(graph)
    assert all(not node.kwargs for node in graph.nodes)
    for tokens in (2, 11):
        x = torch.randn(1, tokens, 6, generator=torch.Generator().manual_seed(tokens))
        assert torch.allclose(_run(graph, x.clone()), compute(x.clone()))


MIXED = {
    "softmax over tokens": lambda x: torch.softmax(x, 1),
    "mean of tokens": lambda x: x - x.mean(1, keepdim=True),
    "largest of tokens": lambda x: x - x.amax(1, keepdim=True),
    "running sum": lambda x: x.cumsum(1),
    "other tokens": lambda x: x.gather(1, torch.zeros_like(x, dtype=torch.int64)),
    "tokens twice": lambda x: torch.cat([x, x], 1),
    "token by token": lambda x: x @ x.transpose(1, 2),
    "how many": lambda x: x * x.shape[1],
}


@pytest.mark.parametrize("case", MIXED)
def test_whatever_mixes_tokens_is_refused(case):
    with pytest.raises(UntraceableError):
        check_token_independence(_graph(MIXED[case]))


def test_a_value_changed_behind_a_view_is_refused():
    def compute(x):
        y = x * 2
        view = y[..., :3]
        y.add_(1)
        return view * 3

    with pytest.raises(UntraceableError, match="changed in place"):
        _graph(compute)


def test_a_slice_is_no_other_op():
    graph = _graph(lambda x: x[..., 1:5:2])
    (node,) = [node for node in graph.nodes if node.target is aten.slice.Tensor]
    assert node.args[1:] == (2, 1, 5, 2)
