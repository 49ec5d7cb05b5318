"""Linears with the sides of many fine-tunes against their reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blockc_runtime.native import library
from blockc_runtime.ops.linear import cpu, cuda, native, reference
from blockc_runtime.ops.linear.by_kernel import KernelWeights, PanelWeights, TileWeights
from blockc_runtime.ops.linear.reference import ReferenceSide
from blockc_runtime.ops.linear.sides import LowRankOutput, LowRankWeights, OutputSides, Rows, SideWeights
from blockc_runtime.ops.linear.weights import DenseWeights, JoinedWeights, PackedWeights, packs
from blockc_runtime.ops.sides import Span, side_batch
from tests.support.native import LEVELS, using

CPU = torch.device("cpu")


def by_kernels(level: str) -> Callable[..., tuple[Tensor, ...]]:
    def linears(*operands: Any) -> tuple[Tensor, ...]:
        with using(level):
            return native.linears(*operands)

    return linears


FORMS = [cpu.linears, cuda.linears, *map(by_kernels, LEVELS)]
OUTS = (12, 8, 8)
FAN_IN = 16


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


CODECS = ("in_scale", "rows", "low_rank", "additive", "out_scale", "bias")


class Dense:
    """An additive term that is kept as it is."""

    def __init__(self, change: Tensor) -> None:
        self.change, self.nbytes = change, change.nbytes

    def add_to(self, y: Tensor, x: Tensor) -> None:
        y += x @ self.change.t()


def reference_sides(codecs: dict[int, frozenset[str]], slots: int, rank: int, seed: int) -> list[list[ReferenceSide]]:
    """``[output][slot]``: a side for each output that has codecs. A scale of what is read differs between outputs."""

    def side(output: int, slot: int) -> ReferenceSide:
        out, own = OUTS[output], seed + 100 * output + slot
        has = codecs.get(output, frozenset())
        return ReferenceSide(
            in_scale=random(FAN_IN, seed=own + 1) if "in_scale" in has else None,
            rows=[(index, random(FAN_IN, seed=own + index)) for index in (1, 4)] if "rows" in has else (),
            low_rank=[(random(rank, FAN_IN, seed=own), random(out, rank, seed=own + 2), 0.5)]
            if "low_rank" in has else (),
            changes=[random(out, FAN_IN, seed=own + 3)] if "additive" in has else (),
            out_scale=random(out, seed=own + 4) if "out_scale" in has else None,
            bias=random(out, seed=own + 5) if "bias" in has else None,
        )  # fmt: skip

    return [[side(output, slot) for slot in range(slots)] for output in range(len(OUTS))]


def stacked(sides: list[list[ReferenceSide]], biases: list[Tensor | None], rank: int) -> SideWeights:
    """As `executor.stacks` does it, from plain tensors."""
    low = [output for output, own in enumerate(sides) if own[0].low_rank]
    scaled = [(output, torch.stack([s.in_scale for s in own])) for output, own in enumerate(sides)
              if own[0].in_scale is not None]  # fmt: skip
    outputs = []
    for output, own in enumerate(sides):
        base = biases[output]
        scale = None if own[0].out_scale is None else torch.stack([s.out_scale for s in own])
        bias = None if own[0].bias is None else torch.stack([s.bias for s in own])
        if bias is not None and base is not None:
            bias = bias - (base if scale is None else scale * base)
        index = torch.tensor([at for at, _ in own[0].rows])
        rows = tuple(
            Rows(
                index=index,
                weight=torch.stack([row for _, row in s.rows]),
                bias=None if base is None else base[index],
            )
            for s in own if s.rows
        )  # fmt: skip
        additive = tuple((Dense(s.changes[0]),) for s in own if s.changes)
        outputs.append(OutputSides(output=output, scale=scale, bias=bias, rows=rows, additive=additive))
    a = [torch.stack([s.low_rank[0][0].t() for s in sides[output]]) for output in low]
    b = [torch.stack([s.low_rank[0][2] * s.low_rank[0][1].t() for s in sides[output]]) for output in low]
    return SideWeights(
        low_rank=LowRankWeights(
            a=torch.cat(a, 2),
            outputs=tuple(
                LowRankOutput(output=output, rank_start=n * rank, rank_stop=(n + 1) * rank, b=b[n])
                for n, output in enumerate(low)
            ),
        ) if low else None,
        in_scales=tuple((frozenset({output}), scale) for output, scale in scaled),
        outputs=tuple(outputs),
    )  # fmt: skip


# Rows as (bank, slot, tokens): bank 0 is none; the other two have whatever codecs at whatever outputs.
BANKED_ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from([1, 1, 2, 4])), max_size=8)
codecs_of = st.dictionaries(st.integers(0, 2), st.frozensets(st.sampled_from(CODECS), min_size=1), min_size=1)


@settings(max_examples=60, deadline=None)
@given(
    rows=BANKED_ROWS,
    base=st.integers(0, 3),
    form=st.sampled_from(FORMS),
    codecs=st.tuples(codecs_of, codecs_of),
    with_bias=st.booleans(),
)
def test_rows_get_their_own_sides(
    rows: list[tuple[int, int, int]],
    base: int,
    form: Callable[..., tuple[Tensor, ...]],
    codecs: tuple[dict[int, frozenset[str]], ...],
    with_bias: bool,
) -> None:
    check_rows(form, rows, base, codecs, with_bias)


def check_rows(
    form: Callable[..., tuple[Tensor, ...]],
    rows: list[tuple[int, int, int]],
    base: int,
    codecs: tuple[dict[int, frozenset[str]], ...],
    with_bias: bool,
) -> None:
    """``base``: tokens before the rows that belong to no fine-tune."""
    tokens = base + sum(count for _, _, count in rows)
    x = random(1, tokens, FAN_IN, seed=tokens)
    matrices = [random(out, FAN_IN, seed=out) for out in OUTS]
    biases = [random(out, seed=out + 1) if with_bias else None for out in OUTS]
    known = [reference_sides(own, 3, rank, seed) for own, rank, seed in zip(codecs, (8, 16), (7, 900), strict=True)]
    users: list[list[tuple[int, int | None]]] = [[(base, None)], [(base, None)]]
    wanted = [[reference.linear(x[0, :base], *pair)] for pair in zip(matrices, biases, strict=True)]
    token = base
    for number, slot, count in rows:
        for other in (1, 2):
            users[other - 1].append((count, slot if other == number else None))
        for value in x[0, token : token + count]:
            for output, (matrix, bias) in enumerate(zip(matrices, biases, strict=True)):
                own = known[number - 1][output][slot] if number else ReferenceSide()
                wanted[output].append(reference.side_linear(value, matrix, bias, own)[None])
        token += count
    banks = [stacked(own, biases, rank) for own, rank in zip(known, (8, 16), strict=True)]
    sides = tuple(
        (bank, batch) for bank, used in zip(banks, users, strict=True) if (batch := side_batch(used, device=CPU)).rows
    )
    got = form(x, DenseWeights(matrices, biases), sides)
    for one, parts in zip(got, wanted, strict=True):
        torch.testing.assert_close(one[0], torch.cat(parts), rtol=1e-4, atol=2e-4)


def test_a_scale_of_all_that_is_read_multiplies_once() -> None:
    class Counted(DenseWeights):
        calls = 0

        def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
            Counted.calls += 1
            return super().__call__(x)

    weights = Counted([random(out, FAN_IN, seed=out) for out in OUTS], [None] * 3)
    batch = side_batch([(2, 0), (1, None)], device=CPU)
    scale = random(1, FAN_IN)
    everywhere = SideWeights(in_scales=((frozenset({0, 1, 2}), scale),))
    cpu.linears(random(1, 3, FAN_IN), weights, ((everywhere, batch),))
    assert Counted.calls == 1


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


FORMS = [(PanelWeights, level) for level in LEVELS] + [
    (TileWeights, level) for level in LEVELS if library.load(level).by_tiles is not None
]


@pytest.mark.parametrize(("form", "level"), FORMS)
@settings(max_examples=60, deadline=None)
@given(
    tokens=st.sampled_from([0, 1, 2, 6, 7, 15, 16, 17, 31, 33, 48, 49, 100, 256, 257, 300]),
    size=st.sampled_from([1, 16, 31, 32, 64, 100, 256, 300, 4200]),
    outs=st.lists(st.sampled_from([1, 8, 16, 31, 32, 40, 65, 130]), min_size=1, max_size=3),
    seed=st.integers(0, 5),
)
def test_layouts_agree_with_dense(
    form: type[KernelWeights], level: str, tokens: int, size: int, outs: list[int], seed: int
) -> None:
    """Whatever does not fill a tile or panel; rows of an input that is a part of a wider tensor."""
    x = random(1, tokens, 2 * size, seed=seed).bfloat16()[:, :, :size]
    matrices = [random(out, size, seed=seed + out).bfloat16() for out in outs]
    biases = [random(out, seed=seed + out + 1).bfloat16() if i % 2 else None for i, out in enumerate(outs)]
    with using(level):
        got = form(matrices, biases)(x)
    assert len(got) == len(outs)
    for y, matrix, bias in zip(got, matrices, biases, strict=True):
        torch.testing.assert_close(y[0].float(), reference.linear(x[0], matrix, bias), rtol=0.02, atol=0.05)


@pytest.mark.parametrize(("form", "level"), FORMS)
@pytest.mark.parametrize("tokens", [3, 40, 100])
def test_values_that_are_not_finite_stay_in_their_row(form: type[KernelWeights], level: str, tokens: int) -> None:
    x = random(1, tokens, 40).bfloat16()
    x[0, 1, 5] = float("nan")
    with using(level):
        (y,) = form([random(24, 40).bfloat16()], [None])(x)
    bad = torch.isnan(y[0]).any(1)
    assert bad[1]
    assert bad.sum() == 1


def test_a_row_without_a_fine_tune_is_exactly_the_base() -> None:
    x = random(1, 4, FAN_IN)
    matrices = [random(out, FAN_IN, seed=out) for out in OUTS]
    weights = DenseWeights(matrices, [None] * 3)
    everything = stacked(reference_sides({0: frozenset(CODECS), 2: frozenset(CODECS)}, 2, 8, 3), [None] * 3, 8)
    sides = ((everything, side_batch([(3, None), (1, 1)], device=CPU)),)
    plain, mixed = cpu.linears(x, weights, ()), cpu.linears(x, weights, sides)
    for one, other in zip(plain, mixed, strict=True):
        assert torch.equal(one[:, :3], other[:, :3])
    assert not torch.equal(plain[0][:, 3], mixed[0][:, 3])


def test_neighbours_are_grouped() -> None:
    batch = side_batch([(1, 2), (1, 0), (1, None), (1, 1), (3, 1), (2, 1), (2, 0), (0, 1)], device=CPU)
    assert [(run.start, run.slots.tolist()) for run in batch.singles] == [(0, [2, 0]), (3, [1])]
    assert batch.spans == (Span(start=4, stop=9, slot=1), Span(start=9, stop=11, slot=0))


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.sampled_from([1, 3, 6, 15, 16, 17, 40, 64, 65, 150]), min_size=1, max_size=4),
    rank=st.sampled_from([8, 16, 32, 64]),
    size=st.sampled_from([16, 33, 40, 64, 100]),
    outs=st.lists(st.sampled_from([8, 16, 24, 31, 64, 100]), min_size=1, max_size=3),
    seed=st.integers(0, 3),
)
def test_low_rank_terms_of_prompts(
    level: str, counts: list[int], rank: int, size: int, outs: list[int], seed: int
) -> None:
    """In bfloat16, against the same in float32: whatever fills no register and no tile; neighbours stay apart."""
    slots = [(seed + i) % 3 for i in range(len(counts))]
    tokens = sum(counts) + 2
    x = random(1, tokens, size, seed=seed).bfloat16()
    a = (random(3, size, rank * len(outs), seed=seed + 1) * size**-0.5).bfloat16()
    bs = [(random(3, rank, out, seed=seed + out) * rank**-0.5).bfloat16() for out in outs]
    low_rank = LowRankWeights(
        a=a,
        outputs=tuple(
            LowRankOutput(output=i, rank_start=rank * i, rank_stop=rank * (i + 1), b=b) for i, b in enumerate(bs)
        ),
    )
    matrices = [random(out, size, seed=seed + 7).bfloat16() * size**-0.5 for out in outs]
    users: list[tuple[int, int | None]] = [(1, None), *zip(counts, slots, strict=True), (1, None)]
    sides = ((SideWeights(low_rank=low_rank), side_batch(users, device=CPU)),)
    weights = DenseWeights(matrices, [None] * len(outs))
    with using(level):
        got = native.linears(x, weights, sides)
    slot_of = [slot for count, slot in users for _ in range(count)]
    for i, (y, b, matrix) in enumerate(zip(got, bs, matrices, strict=True)):
        for token, slot in enumerate(slot_of):
            wanted = matrix.float() @ x[0, token].float()
            if slot is not None:
                inner = x[0, token].float() @ a[slot, :, rank * i : rank * (i + 1)].float()
                wanted = wanted + inner @ b[slot].float()
            torch.testing.assert_close(y[0, token].float(), wanted, rtol=0.03, atol=0.05)
