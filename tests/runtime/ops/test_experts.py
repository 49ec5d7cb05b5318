"""Expert linears equal their definition, whoever chose whom; attention sinks take weight and yield nothing."""

from __future__ import annotations

import pytest
import torch

from blockc_runtime.ops.experts import cpu, cuda, reference


def _case(tokens, choices, *, after, seed=0, experts=5, width=8, out=16):
    generator = torch.Generator().manual_seed(seed)
    shape = (tokens, choices, width) if after else (tokens, width)
    index = torch.stack([torch.randperm(experts, generator=generator)[:choices] for _ in range(tokens)])
    return (
        torch.randn(shape, generator=generator),
        torch.randn(experts, out, width, generator=generator),
        torch.randn(experts, out, generator=generator),
        index,
    )


@pytest.mark.parametrize("after", [False, True], ids=["same input", "an input a choice"])
@pytest.mark.parametrize(("tokens", "choices"), [(1, 1), (1, 3), (7, 2), (40, 4)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_equals_the_definition(tokens, choices, after, has_bias):
    x, weight, bias, index = _case(tokens, choices, after=after)
    args = (x, weight, bias if has_bias else None, index)
    assert torch.allclose(cpu.expert_linear(*args), reference.expert_linear(*args), atol=1e-5)


def test_an_expert_that_nobody_chose_is_not_read():
    x, weight, bias, _ = _case(4, 1, after=False)
    index = torch.full((4, 1), 2)
    weight[torch.arange(5) != 2] = float("nan")
    assert torch.isfinite(cpu.expert_linear(x, weight, bias, index)).all()


def test_tokens_do_not_change_with_their_neighbours():
    x, weight, bias, index = _case(9, 2, after=False)
    together = cpu.expert_linear(x, weight, bias, index)
    for token in range(9):
        alone = cpu.expert_linear(x[token : token + 1], weight, bias, index[token : token + 1])
        assert torch.allclose(alone[0], together[token], atol=1e-6)


def test_grouped_form_equals_the_definition():
    """What runs on CUDA, here on CPU where this torch has it."""
    x, weight, bias, index = (
        tensor.bfloat16() if tensor.is_floating_point() else tensor for tensor in _case(12, 2, after=False)
    )
    ours, theirs = cuda.expert_linear(x, weight, bias, index), reference.expert_linear(x, weight, bias, index)
    assert (ours - theirs).abs().max() < 0.1
