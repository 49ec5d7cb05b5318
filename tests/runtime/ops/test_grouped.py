"""Triton's kernels for terms of low rank: all banks of a site at once, tokens and spans side by side."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blockc_runtime.ops.linear import grouped_cuda, reference
from blockc_runtime.ops.linear.reference import ReferenceSide
from blockc_runtime.ops.linear.side_tiles import FEW_PLACES, MANY_PLACES, SideTiles, StaticSides, tile_values, tiles_of
from blockc_runtime.ops.linear.sides import LowRankOutput, LowRankWeights, SideWeights
from blockc_runtime.ops.linear.weights import DenseWeights
from blockc_runtime.ops.sides import SideBatch, SideRow, SideSet, side_batch
from tests.runtime.ops.test_linear import (
    BANKED_ROWS,
    FAN_IN,
    OUTS,
    check_rows,
    codecs_of,
    reference_sides,
    stacked,
)
from tests.support.device import DEVICE

SLOTS = 3


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Given:
    """Linears whose products are known, in one tensor as joined matrices leave them, or each by itself."""

    reads = nbytes = 0

    def __init__(self, ys: list[Tensor], joined: bool) -> None:
        widths = [y.shape[1] for y in ys]
        parts = torch.cat(ys, 1)[None].split_with_sizes(widths, 2) if joined else [y.clone()[None] for y in ys]
        self.ys, self.count = tuple(part.to(DEVICE) for part in parts), len(ys)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.ys


def bank(outs: list[int], has: list[bool], size: int, rank: int, seed: int) -> LowRankWeights:
    held = [output for output, own in enumerate(has) if own]
    return LowRankWeights(
        a=random(SLOTS, size, rank * len(held), seed=seed).to(DEVICE),
        outputs=tuple(
            LowRankOutput(
                output=output, rank_start=n * rank, rank_stop=(n + 1) * rank,
                b=random(SLOTS, rank, outs[output], seed=seed + output + 1).to(DEVICE),
            )
            for n, output in enumerate(held)
        ),
    )  # fmt: skip


def expected(
    ys: list[Tensor], x: Tensor, banks: list[LowRankWeights], rows: list[tuple[int, int, int]]
) -> list[Tensor]:
    """Place by place. ``rows``: (count, bank or -1, slot)."""
    out = [y.clone() for y in ys]
    place = 0
    for count, number, slot in rows:
        for own in banks[number].outputs if number >= 0 else ():
            for at in range(place, place + count):
                inner = x[at] @ banks[number].a[slot, :, own.rank_start : own.rank_stop].cpu()
                out[own.output][at] += inner @ own.b[slot].cpu()
        place += count
    return out


ROWS = st.lists(
    st.tuples(st.sampled_from([1, 1, 1, 3, 20, 70]), st.integers(-1, 5), st.integers(0, SLOTS - 1)), max_size=7
)


@settings(max_examples=25, deadline=None)
@given(
    rows=ROWS,
    ranks=st.lists(st.sampled_from([1, 8, 16, 24, 80]), min_size=1, max_size=6),
    has=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=6, max_size=6),
    outs=st.lists(st.sampled_from([1, 8, 130]), min_size=1, max_size=6),
    size=st.sampled_from([5, 64, 300]),
    joined=st.booleans(),
    static=st.booleans(),
)
def test_every_place_gets_its_own_terms(
    rows: list[tuple[int, int, int]],
    ranks: list[int],
    has: list[list[bool]],
    outs: list[int],
    size: int,
    joined: bool,
    static: bool,
) -> None:
    """More banks and outputs than one launch takes; some banks lack some outputs, or the site; tables of both kinds."""
    rows = [(count, number if number < len(ranks) else -1, slot) for count, number, slot in rows]
    places = sum(count for count, _, _ in rows) + 1
    x = random(1, places, size, seed=places)
    ys = [random(places, out, seed=out) for out in outs]
    banks = [
        bank(outs, [*own[: len(outs) - 1], any(own) or not number], size, rank, seed=100 * number)
        if any(own) or not number else None
        for number, (rank, own) in enumerate(zip(ranks, has, strict=False))
    ]  # fmt: skip
    rows = [(count, number if banks[number] is not None else -1, slot) for count, number, slot in rows]
    users = {
        number: side_batch([(count, slot if own == number else None) for count, own, slot in rows], device=x.device)
        for number in range(len(banks))
    }
    tiles: list[int] = tile_values(((number, users[number].rows) for number in users), FEW_PLACES)
    table = torch.tensor([*tiles, *([0, 1, 0, 0] * 2), len(tiles) // 4]).to(DEVICE)
    shared = SideTiles(values=table[:-1].view(-1, 4), used=table[-1:], count=len(tiles) // 4 + 2, places=FEW_PLACES)
    sides = tuple(
        (SideWeights(low_rank=own), StaticSides(number=number, tiles=shared) if static else users[number])
        for number, own in enumerate(banks)
        if own is not None and (static or users[number].rows)
    )
    on_device: SideSet = tuple((weights, moved(batch)) for weights, batch in sides)
    got = grouped_cuda.linears(x.to(DEVICE), Given(ys, joined), on_device)
    for one, wanted in zip(got, expected(ys, x[0], banks, rows), strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(one[0].cpu(), wanted, rtol=1e-4, atol=2e-3)


@pytest.mark.skipif(DEVICE != "cpu", reason="operands are on the CPU")
@settings(max_examples=40, deadline=None)
@given(rows=BANKED_ROWS, base=st.integers(0, 3), codecs=st.tuples(codecs_of, codecs_of), with_bias=st.booleans())
def test_kinds_are_mixed(
    rows: list[tuple[int, int, int]], base: int, codecs: tuple[dict[int, frozenset[str]], ...], with_bias: bool
) -> None:
    """Scales of what is read and of what comes out, biases, rows and further changes, with terms of low rank."""
    check_rows(grouped_cuda.linears, rows, base, codecs, with_bias)


@pytest.mark.skipif(DEVICE != "cpu", reason="operands are on the CPU")
@settings(max_examples=15, deadline=None)
@given(
    rows=BANKED_ROWS, in_scale=st.booleans(), with_bias=st.booleans(),
    codecs=st.frozensets(st.sampled_from(["low_rank", "out_scale", "bias"]), min_size=1),
)  # fmt: skip
def test_stacks_are_applied_by_kernels_alone(
    rows: list[tuple[int, int, int]], in_scale: bool, with_bias: bool, codecs: frozenset[str]
) -> None:
    """One product, and no row is picked by the host: what a graph replays."""
    made = reference_sides(dict.fromkeys(range(3), codecs), 3, 8, 5)
    if in_scale:
        made = [[replace(side, in_scale=random(FAN_IN, seed=slot)) for slot, side in enumerate(own)] for own in made]
    matrices = [random(out, FAN_IN, seed=out) for out in OUTS]
    biases = [random(out, seed=out + 1) if with_bias else None for out in OUTS]
    held = stacked(made, biases, 8)
    if in_scale:
        scale = torch.stack([side.in_scale for side in made[0] if side.in_scale is not None])
        held = replace(held, in_scales=((frozenset(range(3)), scale),))
    users = side_batch([(count, slot if bank else None) for bank, slot, count in rows], device=torch.device("cpu"))
    x = random(1, users.total + 1, FAN_IN, seed=1)
    tiles = tile_values([(2, users.rows)], FEW_PLACES)
    values, used = torch.tensor([*tiles, 0, 1, 0, 2]).view(-1, 4), torch.tensor([len(tiles) // 4])
    static = StaticSides(number=2, tiles=SideTiles(values=values, used=used, count=len(values), places=FEW_PLACES))
    got = grouped_cuda.linears(x, DenseWeights(matrices, biases), ((held, static),))  # type: ignore[arg-type]
    slots = [slot if bank else None for bank, slot, count in rows for _ in range(count)] + [None]
    for output, y in enumerate(got):
        for at, slot in enumerate(slots):
            side = ReferenceSide() if slot is None else made[output][slot]
            wanted = reference.side_linear(x[0, at], matrices[output], biases[output], side)
            torch.testing.assert_close(y[0, at], wanted, rtol=1e-4, atol=2e-4)


def moved(batch: SideBatch | StaticSides) -> SideBatch | StaticSides:
    if isinstance(batch, StaticSides):
        return batch
    return SideBatch(total=batch.total, rows=batch.rows, device=torch.device(DEVICE))


def test_tiles_are_as_long_as_they_may_be() -> None:
    rows = [SideRow(first=0, count=1, position=0, slot=1), SideRow(first=1, count=1, position=0, slot=1),
            SideRow(first=5, count=20, position=0, slot=2)]  # fmt: skip
    assert tile_values([(3, rows)], FEW_PLACES) == [0, 2, 1, 3, 5, 16, 2, 3, 21, 4, 2, 3]
    assert tile_values([(3, rows)], MANY_PLACES) == [0, 2, 1, 3, 5, 20, 2, 3]


def test_a_table_is_made_once_for_the_same_banks() -> None:
    one, other = (side_batch([(1, slot), (2, None)], device=torch.device("cpu")) for slot in (0, 1))
    assert tiles_of([one, other])[0] is tiles_of([one, other])[0]
    assert tiles_of([one])[0].count == 1


@pytest.mark.parametrize(("value", "wanted"), [("1", "by Triton"), ("0", "torch's own")])
def test_it_is_said_which_kernels_are_used(value: str, wanted: str) -> None:
    code = "import os; from blockc_runtime.ops.triton_ import describe; print(describe())"
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.environ['BLOCKC_TRITON'] = '{value}'; {code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert wanted in done.stdout


def test_the_table_of_ops_falls_back_where_triton_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from blockc_runtime.ops import triton_
    from blockc_runtime.ops.linear import cuda
    from blockc_runtime.ops.table import op_table

    device = torch.device("cuda")
    assert op_table(device).linears is grouped_cuda.linears
    monkeypatch.setattr(triton_, "problem", lambda: "no Triton")
    assert op_table(device).linears is cuda.linears
