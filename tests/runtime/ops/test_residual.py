"""Bottlenecks beside the residual sum against the formula, token by token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc.ir.codecs import ACTIVATIONS, READS
from blockc_runtime.ops.residual import cpu, reference
from blockc_runtime.ops.sides import side_batch

HIDDEN, WIDTH, SLOTS = 6, 4, 3
CPU = torch.device("cpu")


def _adapters(seed: int, *, bias: bool, before: bool, after: bool) -> list[dict[str, torch.Tensor]]:
    made = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"down": (WIDTH, HIDDEN), "up": (HIDDEN, WIDTH)}
    shapes |= {"down_bias": (WIDTH,), "up_bias": (HIDDEN,)} if bias else {}
    for norm, there in (("before", before), ("after", after)):
        shapes |= {f"{norm}_weight": (HIDDEN,), f"{norm}_bias": (HIDDEN,)} if there else {}
    return [{role: torch.randn(shape, generator=made) for role, shape in shapes.items()} for _ in range(SLOTS)]


def _bank(adapters: list[dict[str, torch.Tensor]], activation: str, reads: str, scale: float) -> cpu.Bottlenecks:
    stacks = {role: torch.stack([own[role] for own in adapters]) for role in adapters[0]}

    def norm(name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        return (stacks[f"{name}_weight"], stacks[f"{name}_bias"]) if f"{name}_weight" in stacks else None

    return cpu.Bottlenecks(
        down=stacks["down"].transpose(1, 2),
        up=stacks["up"].transpose(1, 2) * scale,
        down_bias=stacks.get("down_bias"),
        up_bias=stacks["up_bias"] * scale if "up_bias" in stacks else None,
        before=norm("before"),
        after=norm("after"),
        activation=activation,
        reads=reads,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.none() | st.integers(0, SLOTS - 1)), min_size=1, max_size=5),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.sampled_from(sorted(READS)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_every_row_its_own(rows, activation, reads, bias, before, after):
    adapters = _adapters(len(rows), bias=bias, before=before, after=after)
    tokens = sum(count for count, _ in rows)
    stream, value = torch.randn(2, 1, tokens, HIDDEN)
    sides = ((_bank(adapters, activation, reads, 0.5), side_batch(rows, device=CPU)),)
    slots = [slot for count, slot in rows for _ in range(count)]
    own = [None if slot is None else adapters[slot] for slot in slots]
    wanted = reference.residual(stream[0], value[0], own, activation=activation, reads=reads, scale=0.5)
    torch.testing.assert_close(cpu.residual(stream, value, sides)[0], wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("reads", sorted(READS))
def test_two_banks_and_a_long_chunk(reads):
    first, second = (_adapters(seed, bias=True, before=False, after=False) for seed in (1, 2))
    rows = [(700, 0), (3, None), (2, 1)]
    other = [(700, None), (3, 2), (2, None)]
    stream, value = torch.randn(2, 1, 705, HIDDEN)
    sides = tuple(
        (_bank(own, "tanh", reads, 1.0), side_batch(used, device=CPU)) for own, used in ((first, rows), (second, other))
    )
    own = [first[0]] * 700 + [second[2]] * 3 + [first[1]] * 2
    wanted = reference.residual(stream[0], value[0], own, activation="tanh", reads=reads, scale=1.0)
    torch.testing.assert_close(cpu.residual(stream, value, sides)[0], wanted, atol=2e-5, rtol=1e-4)


def test_without_sides_it_is_one_addition():
    stream, value = torch.randn(2, 1, 3, HIDDEN)
    assert torch.equal(cpu.residual(stream, value, ()), stream + value)
