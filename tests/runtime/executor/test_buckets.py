"""Rows filled up to buckets: what a recorded graph will find, and that filling up touches nobody."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockc.ir.recorded import MOST_CHUNKS, TILE_PLACES, Bucket, bucket_beside, bucket_of, buckets_of, table_numbers
from blockc_runtime.executor.buckets import GroupForm, StepLayout, TableRow, table_of
from blockc_runtime.ops.attention.rows import KvRow
from blockc_runtime.ops.linear.side_tiles import FEW_PLACES, MANY_PLACES


def test_buckets_hold_their_rows_and_waste_little() -> None:
    sizes = [bucket_of(rows) for rows in range(1, 600)]
    assert all(size >= rows and bucket_of(size) == size for rows, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert all(size < 2 * rows for rows, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 24  # each is a graph of each segment


@given(
    max_rows=st.integers(1, 400),
    max_tokens=st.integers(1, 3000),
    singles=st.integers(0, 399),
    chunks=st.lists(st.integers(2, 400), max_size=MOST_CHUNKS + 1),
)
def test_no_step_is_larger_than_what_a_plan_counts(
    max_rows: int, max_tokens: int, singles: int, chunks: list[int]
) -> None:
    largest = buckets_of(max_rows=max_rows, max_tokens=max_tokens)
    if not chunks or singles + len(chunks) > max_rows or singles + sum(chunks) > max_tokens:
        return
    bucket = bucket_beside(singles, chunks)
    if bucket is None:
        assert len(chunks) > MOST_CHUNKS or sum(chunks) > 512 or singles > 256
        return
    assert bucket.singles >= singles
    assert bucket.chunked >= sum(chunks)
    assert bucket.chunked < 2 * sum(chunks) + 64
    assert any(bucket.singles <= own.singles and bucket.chunked <= own.chunked for own in largest)


GROUPS = (
    GroupForm(page_tokens=4, window=None, scratch=50, positions=64),
    GroupForm(page_tokens=2, window=5, scratch=70, positions=64),
)


@st.composite
def filled(draw: st.DrawFn) -> tuple[StepLayout, list[TableRow]]:
    singles, several = draw(st.sampled_from([(3, 0), (9, 0), (1, 1), (5, 3), (0, 2)]))
    counts = [1] * singles + [draw(st.integers(2, 40)) for _ in range(several)]
    rows = []
    for count in counts:
        start = draw(st.integers(0, 64 - count))
        pages: list[array[int] | None] = []
        for group in GROUPS:
            held: list[int | None] = draw(
                st.lists(
                    st.integers(0, group.scratch - 1),
                    min_size=(start + count - 1) // group.page_tokens + 1,
                    max_size=32,
                )
            )
            if group.window is not None:
                gone = max(0, start - group.window + 1) // group.page_tokens
                held[:gone] = [None] * gone
            pages.append(draw(st.sampled_from([table_of(held), table_of(held), None])))
        uses = tuple(draw(st.sampled_from([None, (0, 1), (0, 2), (3, 1)])) for _ in range(2))
        tokens = tuple(draw(st.lists(st.integers(1, 9), min_size=count, max_size=count)))
        rows.append(
            TableRow(tokens=tokens, start=start, samples=draw(st.integers(0, 1)), pages=tuple(pages), uses=uses)
        )
    bucket = bucket_beside(singles, counts[singles:]) if several else Bucket(singles=bucket_of(singles))
    assert bucket is not None
    return StepLayout(bucket=bucket, groups=GROUPS, segments=2), rows


def firsts_of(layout: StepLayout, rows: Sequence[TableRow]) -> list[int]:
    """Rows of one token from the first place on, those of several behind the room for them."""
    firsts, single, chunked = [], 0, layout.bucket.singles
    for row in rows:
        count = len(row.tokens)
        firsts.append(single if count == 1 else chunked)
        single, chunked = (single + 1, chunked) if count == 1 else (single, chunked + count)
    return firsts


def fours(numbers: Sequence[int], first: int, count: int) -> list[tuple[int, ...]]:
    return [tuple(numbers[first + 4 * i : first + 4 * i + 4]) for i in range(count)]


@given(filled())
def test_rows_find_their_pages_and_others_find_the_scratch_page(
    given_rows: tuple[StepLayout, list[TableRow]],
) -> None:
    layout, rows = given_rows
    numbers, bucket = layout.numbers(rows).tolist(), layout.bucket
    assert len(numbers) <= layout.size == table_numbers(bucket, GROUPS, 2)
    firsts = firsts_of(layout, rows)
    tokens, positions = [0] * bucket.tokens, [0] * bucket.tokens
    for first, row in zip(firsts, rows, strict=True):
        for i, token in enumerate(row.tokens):
            tokens[first + i], positions[first + i] = token, row.start + i
    assert numbers[: bucket.tokens] == tokens
    assert numbers[bucket.tokens : 2 * bucket.tokens] == positions
    for index, group in enumerate(GROUPS):
        slots = numbers[layout.slots_at(index) : layout.slots_at(index) + bucket.tokens]
        singles = fours(numbers, layout.rows_at(index), bucket.singles)
        chunks = fours(numbers, layout.chunks_at(index), bucket.chunks)
        assert [entry[0] for entry in singles] == list(range(bucket.singles))

        def seen(first_page: int, lowest: int, last: int, page_tokens: int = group.page_tokens) -> list[int]:
            return [
                numbers[layout.pages_at + first_page + at // page_tokens] * page_tokens + at % page_tokens
                for at in range(lowest, last + 1)
            ]

        scratch, held_slots = group.scratch * group.page_tokens, set()
        for first, row in zip(firsts, rows, strict=True):
            count, held = len(row.tokens), row.pages[index]
            entry = singles[first] if count == 1 else next(own for own in chunks if own[0] == first)
            if held is None:
                assert {*slots[first : first + count]} == {scratch}
                assert seen(*entry[1:]) == [scratch] if count == 1 else entry[1] == 0
                continue
            own = KvRow(first=0, count=count, start=row.start, pages=tuple(held))
            wanted = [
                own.slot(at, group.page_tokens) for at in range(own.first_visible(group.window), own.start + count)
            ]
            assert slots[first : first + count] == wanted[-count:]
            held_slots |= set(range(first, first + count))
            if count == 1:
                assert seen(*entry[1:]) == wanted
                continue
            _, length, first_page, before = entry
            assert length == count
            assert seen(first_page, before + count - len(wanted), before + count - 1) == wanted
        for place, entry in enumerate(singles):
            if place not in firsts:
                assert seen(*entry[1:]) == [scratch]
        assert all(slot == scratch for place, slot in enumerate(slots) if place not in held_slots)
        assert sum(entry[1] > 0 for entry in chunks) == sum(
            len(row.tokens) > 1 and row.pages[index] is not None for row in rows
        )


@given(filled(), st.booleans())
def test_tiles_cover_each_use_once(given_rows: tuple[StepLayout, list[TableRow]], selects: bool) -> None:
    layout, rows = given_rows
    numbers = layout.numbers(rows)
    firsts, counts = firsts_of(layout, rows), [len(row.tokens) for row in rows]
    if selects and layout.bucket.chunked:
        counts = [row.samples for row in rows]
        firsts = [sum(counts[:i]) for i in range(len(rows))]
    for segment in range(2):
        found: dict[int, tuple[int, int]] = {}
        used = numbers[layout.used_at(segment, selects=selects)]
        for first, count, slot, bank in fours(numbers, layout.tiles_at(segment, selects=selects), used):
            assert 0 < count <= layout.tile_places
            for place in range(first, first + count):
                assert place not in found
                found[place] = bank, slot
        assert found == {
            first + i: row.uses[segment]
            for first, count, row in zip(firsts, counts, rows, strict=True)
            for i in range(count)
            if row.uses[segment] is not None
        }
        assert used <= numbers[layout.used_at(segment)]


@given(filled())
def test_places_of_logits_follow_the_rows(given_rows: tuple[StepLayout, list[TableRow]]) -> None:
    layout, rows = given_rows
    own = layout.numbers(rows).tolist()[layout.logits_at : layout.pages_at]
    if not layout.bucket.chunked:
        assert own == []
        return
    wanted = [
        first + len(row.tokens) - 1 for first, row in zip(firsts_of(layout, rows), rows, strict=True) if row.samples
    ]
    assert own == wanted + [0] * (layout.bucket.logits - len(wanted))


def row_of(count: int, **more: object) -> TableRow:
    return TableRow(**{"tokens": (0,) * count, "start": 0, "samples": 0, "pages": (), "uses": (), **more})  # type: ignore[arg-type]


def test_tiles_are_no_longer_than_kernels_take() -> None:
    layout = StepLayout(bucket=Bucket(singles=32), groups=(), segments=1)
    numbers = layout.numbers([row_of(1, uses=((0, 5),))] * 20)
    assert numbers[layout.used_at(0)] == 2
    assert fours(numbers, layout.tiles_at(0), 2) == [(0, 16, 5, 0), (16, 4, 5, 0)]
    layout = StepLayout(bucket=Bucket(singles=0, chunked=128), groups=(), segments=1)
    numbers = layout.numbers([row_of(70, uses=((0, 5),))])
    assert fours(numbers, layout.tiles_at(0), numbers[layout.used_at(0)]) == [(0, 64, 5, 0), (64, 6, 5, 0)]
    assert (FEW_PLACES, MANY_PLACES) == (16, TILE_PLACES)


def test_a_page_that_is_gone_is_never_read() -> None:
    row = row_of(1, start=9, pages=(table_of((0, None, 2)), table_of((0, 1, 2, 3, 4))))
    with pytest.raises(ValueError, match="gone"):
        StepLayout(bucket=Bucket(singles=1), groups=GROUPS, segments=0).numbers([row])
