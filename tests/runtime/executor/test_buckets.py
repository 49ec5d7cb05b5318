"""Rows filled up to buckets: what a recorded graph will find, and that filling up touches nobody."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockc.ir.recorded import bucket_of
from blockc_runtime.executor.buckets import DecodeLayout, DecodeRow, GroupForm
from blockc_runtime.ops.attention.rows import KvRow


def test_buckets_hold_their_rows_and_waste_little() -> None:
    sizes = [bucket_of(rows) for rows in range(1, 600)]
    assert all(size >= rows and bucket_of(size) == size for rows, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert all(size < 2 * rows for rows, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 24  # each is a graph of each segment


GROUPS = (
    GroupForm(page_tokens=4, window=None, scratch=50, positions=64),
    GroupForm(page_tokens=2, window=5, scratch=70, positions=64),
)


@st.composite
def filled(draw: st.DrawFn) -> tuple[DecodeLayout, list[DecodeRow]]:
    count = draw(st.integers(1, 9))
    rows = []
    for _ in range(count):
        position = draw(st.integers(0, 63))
        pages: list[tuple[int | None, ...] | None] = []
        for group in GROUPS:
            held: list[int | None] = draw(
                st.lists(st.integers(0, group.scratch - 1), min_size=position // group.page_tokens + 1, max_size=32)
            )
            if group.window is not None:
                gone = max(0, position - group.window + 1) // group.page_tokens
                held[:gone] = [None] * gone
            pages.append(draw(st.sampled_from([tuple(held), tuple(held), None])))
        uses = tuple(draw(st.sampled_from([None, (0, 1), (0, 2), (3, 1)])) for _ in range(2))
        rows.append(DecodeRow(token=draw(st.integers(0, 9)), position=position, pages=tuple(pages), uses=uses))
    return DecodeLayout(bucket=bucket_of(count), groups=GROUPS, segments=2), rows


def fours(numbers: Sequence[int], first: int, count: int) -> list[tuple[int, ...]]:
    return [tuple(numbers[first + 4 * i : first + 4 * i + 4]) for i in range(count)]


@given(filled())
def test_rows_find_their_pages_and_others_find_the_scratch_page(
    given_rows: tuple[DecodeLayout, list[DecodeRow]],
) -> None:
    layout, rows = given_rows
    numbers = layout.numbers(rows).tolist()
    assert len(numbers) <= layout.size
    empty = layout.bucket - len(rows)
    assert numbers[: layout.bucket] == [row.token for row in rows] + [0] * empty
    assert numbers[layout.bucket : 2 * layout.bucket] == [row.position for row in rows] + [0] * empty
    for index, group in enumerate(GROUPS):
        slots = numbers[layout.slots_at(index) : layout.slots_at(index) + layout.bucket]
        table = fours(numbers, layout.rows_at(index), layout.bucket)
        for place, (slot, entry) in enumerate(zip(slots, table, strict=True)):
            first_page, lowest, last = entry[1:]
            assert entry[0] == place
            seen = [
                numbers[layout.pages_at + first_page + at // group.page_tokens] * group.page_tokens
                + at % group.page_tokens
                for at in range(lowest, last + 1)
            ]
            held = rows[place].pages[index] if place < len(rows) else None
            if held is None:
                assert {slot, *seen} == {group.scratch * group.page_tokens}
                continue
            own = KvRow(first=0, count=1, start=rows[place].position, pages=held)
            positions = range(own.first_visible(group.window), own.start + 1)
            assert seen == [own.slot(position, group.page_tokens) for position in positions]
            assert slot == seen[-1]
            assert group.scratch not in [seen_slot // group.page_tokens for seen_slot in seen]


@given(filled())
def test_tiles_cover_each_use_once(given_rows: tuple[DecodeLayout, list[DecodeRow]]) -> None:
    layout, rows = given_rows
    numbers = layout.numbers(rows)
    for segment in range(2):
        found: dict[int, tuple[int, int]] = {}
        tiles_at = layout.tiles_at(segment)
        used = numbers[tiles_at + 4 * layout.bucket]
        for first, count, slot, bank in fours(numbers, tiles_at, used):
            assert count
            for place in range(first, first + count):
                assert place not in found
                found[place] = bank, slot
        assert found == {place: row.uses[segment] for place, row in enumerate(rows) if row.uses[segment] is not None}


def test_tiles_are_no_longer_than_kernels_take() -> None:
    row = DecodeRow(token=0, position=0, pages=(), uses=((0, 5),))
    layout = DecodeLayout(bucket=32, groups=(), segments=1)
    numbers = layout.numbers([row] * 20)
    assert numbers[layout.tiles_at(0) + 4 * 32] == 2
    assert fours(numbers, layout.tiles_at(0), 2) == [(0, 16, 5, 0), (16, 4, 5, 0)]


def test_a_page_that_is_gone_is_never_read() -> None:
    row = DecodeRow(token=0, position=9, pages=((0, None, 2), (0, 1, 2, 3, 4)), uses=())
    with pytest.raises(ValueError, match="gone"):
        DecodeLayout(bucket=1, groups=GROUPS, segments=0).numbers([row])
