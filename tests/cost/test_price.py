"""Prices of steps: the roofline, its constants, and what may be counted on when steps are alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockc.cost import (
    TICKS_PER_S,
    AttentionWork,
    ChainWork,
    DeviceRates,
    PlanWork,
    SegmentWork,
    StepPricer,
    catalogue_rates,
    cell_rates,
    slower,
)
from blockc.cost.price import sum_of_seen
from blockc.cost.work import ExpertWork
from blockc.spec.device_kinds import DEVICE_KINDS

RATES = DeviceRates(flops_per_s=1e6, bytes_per_s=1e6, block_s=0.0, row_s=0.0, step_s=0.0)
SEGMENT = SegmentWork(
    blocks=3, read_bytes=1000, row_read_bytes=0, token_flops=100, row_flops=0, reduces=6, reduce_bytes=600
)
HEAD = replace(SEGMENT, read_bytes=0, token_flops=0, row_read_bytes=500, row_flops=50, reduces=0, reduce_bytes=0)
CHAIN = ChainWork(
    segments=(0, 1),
    attention=(AttentionWork(window=None, token_bytes=10, pair_flops=20),),
    side_bytes=0,
    side_token_flops=0,
)
TUNED = replace(CHAIN, side_bytes=200, side_token_flops=40)


def pricer(rates: DeviceRates = RATES, *, segment: SegmentWork = SEGMENT, chain: ChainWork = CHAIN) -> StepPricer:
    return StepPricer(PlanWork(segments=(segment, HEAD), chains=(chain, TUNED)), rates)


def us(ticks: int) -> float:
    return ticks * 1e6 / TICKS_PER_S


def test_a_launch_takes_as_long_as_reading_or_computing() -> None:
    price = pricer()
    assert us(price.launches({0: 1}, {})) == 1000  # read once
    assert us(price.launches({0: 10}, {})) == 1000
    assert us(price.launches({0: 20}, {})) == 2000  # computed
    assert us(price.launches({0: 1}, {0: 1})) == 1500  # the head is read where logits are wanted


def test_a_launch_takes_as_long_as_both_where_a_device_does_one_after_the_other() -> None:
    price = pricer(replace(RATES, overlaps_reads=False))
    assert us(price.launches({0: 1}, {})) == 1000 + 100
    assert us(price.launches({0: 20}, {})) == 1000 + 2000
    assert us(price.launches({0: 1}, {0: 2})) == 1000 + 100 + 500 + 2 * 50
    assert us(price.launches({1: 1}, {})) == 1000 + 100 + 200 + 40 == 1100 + us(price.sides(1, 1))
    assert us(price.attention(0, 9, 1)) == 10 * (10 + 20)
    assert us(price.attention(0, 0, 4)) == 4 * 10 + 20 * (1 + 2 + 3 + 4)


def test_chains_on_one_segment_share_its_launch_and_each_reads_its_own_sides() -> None:
    price = pricer()
    assert us(price.launches({0: 1, 1: 1}, {})) == 1000 + 200
    assert us(price.launches({0: 5, 1: 10}, {})) == 1500 + 400  # 15 tokens; 10 x 40 operations of sides


def test_constants_are_for_each_block_row_and_step() -> None:
    price = pricer(replace(RATES, block_s=1e-6, row_s=1e-5, step_s=1e-4))
    assert us(price.launches({0: 1}, {})) == 1000 + 3 + 3
    assert us(price.constant(4)) == pytest.approx(140)


def test_attention_reads_the_cache_or_computes() -> None:
    price = pricer()
    assert us(price.attention(0, 9, 1)) == 10 * 20  # one query, ten keys: 200 operations, 100 bytes
    assert us(price.attention(0, 0, 4)) == 20 * (1 + 2 + 3 + 4)
    memory_bound = replace(CHAIN, attention=(AttentionWork(window=None, token_bytes=1000, pair_flops=1),))
    assert us(pricer(chain=memory_bound).attention(0, 6, 4)) == 10_000


@given(window=st.integers(1, 12), start=st.integers(0, 30), count=st.integers(1, 30))
def test_pairs_under_a_window(window: int, start: int, count: int) -> None:
    assert sum_of_seen(start, count, window) == sum(min(p + 1, window) for p in range(start, start + count))


@given(window=st.one_of(st.none(), st.integers(1, 40)), position=st.integers(0, 60), beside=st.booleans())
def test_decode_rows_grow_by_a_constant_as_long_as_it_is_said(window: int | None, position: int, beside: bool) -> None:
    attention = (
        AttentionWork(window=window, token_bytes=7, pair_flops=3),
        AttentionWork(window=None, token_bytes=1, pair_flops=5),
    )
    price = pricer(replace(RATES, overlaps_reads=beside), chain=replace(CHAIN, attention=attention))
    now, growth, steps = price.decode(0, position)
    for step in range(min(50, steps or 50)):
        assert price.attention(0, position + step, 1) == now + growth * step
    assert steps is None or steps >= 1


@given(
    tokens=st.integers(1, 300),
    more=st.integers(0, 300),
    experts=st.sampled_from([(), (ExpertWork(nbytes=9000, experts=8, chosen=2),)]),
    beside=st.booleans(),
)
def test_more_tokens_never_take_less_and_never_more_than_the_affine(tokens, more, experts, beside) -> None:
    price = pricer(replace(RATES, overlaps_reads=beside), segment=replace(SEGMENT, experts=experts))
    few, many = price.launches({0: tokens}, {0: 1}), price.launches({0: tokens + more}, {0: 1})
    assert few <= many
    if not experts:
        bound = sum(
            affine.set_up_s + affine.token_s * count
            for affine, count in ((price.affine(0), tokens), (price.affine(1, samples=True), 1))
        )
        assert few <= (bound + 1e-12) * TICKS_PER_S


def test_experts_are_read_as_far_as_tokens_choose_them() -> None:
    segment = replace(SEGMENT, read_bytes=0, token_flops=0, experts=(ExpertWork(nbytes=8000, experts=8, chosen=2),))
    price = pricer(segment=segment)
    assert us(price.launches({0: 1}, {})) == 2000
    assert us(price.launches({0: 2}, {})) == pytest.approx(8000 * (1 - 0.75**2))
    assert us(price.launches({0: 1000}, {})) == pytest.approx(8000)


def test_cells_are_faster_and_talk() -> None:
    kind = DEVICE_KINDS["a100_80g"]
    alone = catalogue_rates(kind)
    assert alone is not None
    assert (alone.flops_per_s, alone.bytes_per_s) == (156e12, 0.8 * 2039e9)
    pair = cell_rates(alone, width=2, link_bytes_per_s=kind.link_bytes_per_s)
    assert pair.bytes_per_s == pytest.approx(alone.bytes_per_s * 2 * 0.92)
    assert pair.reduce_bytes_per_s == kind.link_bytes_per_s  # half of all bytes there, half back
    one, two = StepPricer(PlanWork(segments=(SEGMENT, HEAD), chains=(CHAIN,)), alone), None
    two = StepPricer(PlanWork(segments=(SEGMENT, HEAD), chains=(CHAIN,)), pair)
    assert two.launches({0: 1}, {}) > one.launches({0: 1}, {})  # so small a segment is all talk
    assert cell_rates(alone, width=1, link_bytes_per_s=None) == alone
    with pytest.raises(ValueError, match="link"):
        cell_rates(alone, width=2, link_bytes_per_s=None)


@pytest.mark.parametrize("beside", [True, False])
def test_slower_rates_scale_every_price(beside: bool) -> None:
    rates = replace(
        RATES, overlaps_reads=beside, block_s=1e-6, row_s=1e-6, step_s=1e-6, reduce_s=1e-6, reduce_bytes_per_s=1e6
    )
    quick, slow = pricer(rates), pricer(slower(rates, 3))
    for tokens in ({0: 1}, {0: 40, 1: 3}):
        assert slow.launches(tokens, tokens) == pytest.approx(3 * quick.launches(tokens, tokens))
    assert slow.attention(0, 5, 3) == pytest.approx(3 * quick.attention(0, 5, 3))
    assert slow.constant(7) == pytest.approx(3 * quick.constant(7))


def test_unknown_kinds_have_no_rates() -> None:
    assert catalogue_rates(DEVICE_KINDS["cuda"]) is None
