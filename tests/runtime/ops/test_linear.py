"""Linears with the sides of many fine-tunes against their reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blockc_runtime.ops.linear import cpu, cuda, reference
from blockc_runtime.ops.linear.sides import SideOutput, SideWeights
from blockc_runtime.ops.linear.weights import DenseWeights, JoinedWeights, PackedWeights, packs
from blockc_runtime.ops.sides import SideSet, Span, side_batch

CPU = torch.device("cpu")
OUTS = (12, 8, 8)
FAN_IN = 16


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bank(slots: int, rank: int, sites: tuple[int, ...], seed: int) -> SideWeights:
    return SideWeights(
        a=random(slots, FAN_IN, rank * len(sites), seed=seed),
        outputs=tuple(
            SideOutput(
                output=site,
                rank_start=place * rank,
                rank_stop=(place + 1) * rank,
                b=random(slots, rank, OUTS[site], seed=seed + site + 1),
            )
            for place, site in enumerate(sites)
        ),
    )


def expected(x: Tensor, matrices: list[Tensor], sides: SideSet, slots: list[list[int]]) -> list[Tensor]:
    """Per output: the base, then each bank with its slot per row."""
    outs = [reference.linear(x[0], matrix, None) for matrix in matrices]
    for (weights, _), slot in zip(sides, slots, strict=True):
        for out in weights.outputs:
            outs[out.output] = reference.side_linear(
                outs[out.output],
                x[0],
                weights.a[..., out.rank_start : out.rank_stop].transpose(1, 2),
                out.b.transpose(1, 2),
                [out.b.shape[1]] * len(out.b),
                slot,
            )
    return outs


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from([1, 1, 2, 4])), max_size=8),
    base=st.integers(0, 3),
    form=st.sampled_from([cpu.linears, cuda.linears]),
)
def test_rows_get_their_own_sides(rows: list[tuple[int, int, int]], base: int, form: object) -> None:
    """(bank, slot, tokens) per row: bank 0 is none; one bank acts on all sites, one on the last."""
    tokens = base + sum(count for _, _, count in rows)
    x = random(1, tokens, FAN_IN, seed=tokens)
    matrices = [random(out, FAN_IN, seed=out) for out in OUTS]
    slots = [[-1] * tokens, [-1] * tokens]
    users: list[list[tuple[int, int | None]]] = [[(base, None)], [(base, None)]]
    token = base
    for number, slot, count in rows:
        for other in (1, 2):
            users[other - 1].append((count, slot if other == number else None))
        if number:
            slots[number - 1][token : token + count] = [slot] * count
        token += count
    banks = (bank(3, 8, (0, 1, 2), 7), bank(3, 16, (2,), 9))
    sides = tuple((weights, side_batch(used, device=CPU)) for weights, used in zip(banks, users, strict=True))
    got = form(x, DenseWeights(matrices, [None] * 3), sides)  # type: ignore[operator]
    wanted = expected(x, matrices, sides, slots)
    for one, wanted_one in zip(got, wanted, strict=True):
        torch.testing.assert_close(one[0], wanted_one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [DenseWeights, JoinedWeights])
def test_weights_forms_agree(kind: type[DenseWeights] | type[JoinedWeights]) -> None:
    x = random(1, 5, FAN_IN)
    matrices = [random(out, FAN_IN, seed=out) for out in OUTS]
    biases = [None, random(OUTS[1]), None]
    for y, matrix, bias in zip(kind(matrices, biases)(x), matrices, biases, strict=True):
        torch.testing.assert_close(y[0], reference.linear(x[0], matrix, bias))


@pytest.mark.skipif(not packs(torch.bfloat16, CPU), reason="oneDNN has no bfloat16 here")
@pytest.mark.parametrize("tokens", [0, 1, 7, 64])
def test_packed_weights_agree_with_dense(tokens: int) -> None:
    x = random(1, tokens, FAN_IN).bfloat16()
    matrices = [random(out, FAN_IN, seed=out).bfloat16() for out in OUTS]
    biases = [None, random(OUTS[1]).bfloat16(), None]
    for y, matrix, bias in zip(PackedWeights(matrices, biases)(x), matrices, biases, strict=True):
        wanted = reference.linear(x[0], matrix, bias)
        torch.testing.assert_close(y[0].float(), wanted, rtol=0.02, atol=0.05)


def test_a_row_without_a_fine_tune_is_exactly_the_base() -> None:
    x = random(1, 4, FAN_IN)
    matrices = [random(out, FAN_IN, seed=out) for out in OUTS]
    weights = DenseWeights(matrices, [None] * 3)
    sides = ((bank(2, 8, (0, 1, 2), 3), side_batch([(3, None), (1, 1)], device=CPU)),)
    plain, mixed = cpu.linears(x, weights, ()), cpu.linears(x, weights, sides)
    for one, other in zip(plain, mixed, strict=True):
        assert torch.equal(one[:, :3], other[:, :3])
        assert not torch.equal(one[:, 3], other[:, 3])


def test_neighbours_are_grouped() -> None:
    batch = side_batch([(1, 2), (1, 0), (1, None), (1, 1), (3, 1), (2, 1), (2, 0), (0, 1)], device=CPU)
    assert [(run.start, run.slots.tolist()) for run in batch.singles] == [(0, [2, 0]), (3, [1])]
    assert batch.spans == (Span(start=4, stop=9, slot=1), Span(start=9, stop=11, slot=0))


def test_scales_and_bias_of_the_reference() -> None:
    y, x = random(2, 4), random(2, 6)
    a, b = random(1, 3, 6), random(1, 4, 3)
    scales = {
        "in_scale": random(1, 6, seed=1),
        "out_scale": random(1, 4, seed=2),
        "out_bias": random(1, 4, seed=3),
    }
    got = reference.side_linear(y, x, a, b, [2], [0, -1], **scales)
    inner = a[0, :2] @ (x[0] * scales["in_scale"][0])
    wanted = scales["out_scale"][0] * (y[0] + b[0, :, :2] @ inner) + scales["out_bias"][0]
    torch.testing.assert_close(got[0], wanted)
    assert torch.equal(got[1], y[1])
