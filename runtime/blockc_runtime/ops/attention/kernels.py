"""Triton kernels of attention over the paged cache. On a CPU they run in Triton's interpreter (``TRITON_INTERPRET=1``).

Rows of one token (`attend_pages`): ``rows [n, 4]`` and ``pages`` are those of `batch.PagedRows`: where the row stands
on the token axis, where its pages begin in ``pages``, and the first and the last position that it sees, counted from
its first page. Rows of several tokens (`attend_chunks`): those of `batch.PagedChunks`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def as_kept(x, scale, cache, KEPT: tl.constexpr):
    """In the dtype of the cache, with ``scale`` beside whole numbers.

    ``KEPT`` 0: that of the model; 1: e4m3, whose largest number stands for what is beyond; 2: whole numbers.
    """
    if KEPT == 1:
        x = tl.clamp(x.to(tl.float32), -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    if KEPT == 2:
        is_held = scale > 0
        x = tl.div_rn(tl.where(is_held, x.to(tl.float32), 0.0), tl.where(is_held, scale, 1.0))
        # 1.5 * 2^23: adding it rounds to a whole number, to nearest even.
        x = tl.clamp((x + 12582912.0) - 12582912.0, -127.0, 127.0)
    return x.to(cache.dtype.element_ty)


@triton.jit
def scale_of(x):
    """By what the whole numbers of ``x [n, D]`` are multiplied, ``[n, 1]``: NaN where anything is not finite."""
    size = tl.abs(x.to(tl.float32))
    is_finite = size < float("inf")
    most = tl.max(tl.where(is_finite, size, 0.0), 1)
    others = tl.sum(tl.where(is_finite, 0.0, 1.0), 1)
    return tl.where(others > 0, float("nan"), tl.div_rn(most, 127.0))[:, None]


@triton.jit
def turned(x, cos, sin, held, SIZE: tl.constexpr, HALF: tl.constexpr, TURN: tl.constexpr):
    """Both halves of vectors at ``x``, rotated by one token's angles if ``TURN``."""
    own = tl.arange(0, HALF)[None, :]
    first = tl.load(x + own, mask=held, other=0.0)
    second = tl.load(x + own + SIZE // 2, mask=held, other=0.0)
    if TURN:
        is_angle = own < SIZE // 2
        cos_first = tl.load(cos + own, mask=is_angle, other=0.0).to(tl.float32)
        cos_second = tl.load(cos + own + SIZE // 2, mask=is_angle, other=0.0).to(tl.float32)
        sin_first = tl.load(sin + own, mask=is_angle, other=0.0).to(tl.float32)
        sin_second = tl.load(sin + own + SIZE // 2, mask=is_angle, other=0.0).to(tl.float32)
        one, other = first.to(tl.float32), second.to(tl.float32)
        first = (one * cos_first - other * sin_first).to(first.dtype)
        second = (other * cos_second + one * sin_second).to(second.dtype)
    return first, second


@triton.jit
def write_heads(
    q, k, v, q_out, cos, sin, keys, values, key_scales, value_scales, slots,
    q_token, q_head, k_token, k_head, v_token, v_head, angle_token, count, kv_count,
    HEADS: tl.constexpr, KEY_SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, HALF: tl.constexpr, VALUE: tl.constexpr,
    TURN: tl.constexpr, KEPT: tl.constexpr,
) -> None:  # fmt: skip
    """Rotate queries and keys by ``cos`` and ``sin``, if ``TURN``, and write keys and values to the cache.

    A program has one token and its queries, keys or values. ``q_out [T, count, KEY_SIZE]``.
    """
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + token).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    if part == 0:
        own = tl.arange(0, VALUE)[None, :]
        held = (head < kv_count) & (own < VALUE_SIZE)
        new = tl.load(v + token * v_token + head * v_head + own, mask=held, other=0.0)
        scale = 1.0
        if KEPT == 2:
            scale = scale_of(new)
            tl.store(value_scales + slot * kv_count + head, scale, mask=head < kv_count)
        tl.store(values + (slot * kv_count + head) * VALUE_SIZE + own, as_kept(new, scale, values, KEPT), mask=held)
    if part == 1:
        own = tl.arange(0, HALF)[None, :]
        held = (head < kv_count) & (own < KEY_SIZE // 2)
        x = k + token * k_token + head * k_head
        first, second = turned(x, cos + token * angle_token, sin + token * angle_token, held, KEY_SIZE, HALF, TURN)
        to = keys + (slot * kv_count + head) * KEY_SIZE + own
        scale = 1.0
        if KEPT == 2:
            # A NaN of either half is in both.
            scale = tl.maximum(scale_of(first), scale_of(second), propagate_nan=tl.PropagateNan.ALL)
            tl.store(key_scales + slot * kv_count + head, scale, mask=head < kv_count)
        tl.store(to, as_kept(first, scale, keys, KEPT), mask=held)
        tl.store(to + KEY_SIZE // 2, as_kept(second, scale, keys, KEPT), mask=held)
    if part == 2:
        own = tl.arange(0, HALF)[None, :]
        held = (head < count) & (own < KEY_SIZE // 2)
        x = q + token * q_token + head * q_head
        first, second = turned(x, cos + token * angle_token, sin + token * angle_token, held, KEY_SIZE, HALF, TURN)
        to = q_out + (token * count + head) * KEY_SIZE + own
        tl.store(to, first, mask=held)
        tl.store(to + KEY_SIZE // 2, second, mask=held)


@triton.jit
def attend_pages(
    q, keys, values, key_scales, value_scales, rows, pages, sinks, out, parts, sums,
    q_token, q_head, group, count, kv_count, splits, scale, softcap,
    GROUP: tl.constexpr, KEY_SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    PAGE: tl.constexpr, BLOCK: tl.constexpr, HAS_SCALES: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr, IS_PART: tl.constexpr,
) -> None:  # fmt: skip
    """A row's queries of one head of the cache, ``group`` of them, over a part of the positions that the row sees.

    Writes ``out [T, count, VALUE_SIZE]``; of a part ``parts [splits, rows, count, VALUE_SIZE]``, not yet divided, and
    ``sums [splits, rows, count, 2]``: the largest score and the sum of weights beside it.
    """
    row, kv_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    token = tl.load(rows + row * 4).to(tl.int64)
    first_page = tl.load(rows + row * 4 + 1).to(tl.int64)
    lowest = tl.load(rows + row * 4 + 2).to(tl.int32)
    last = tl.load(rows + row * 4 + 3).to(tl.int32)
    blocks = (last + 1 - lowest + BLOCK - 1) // BLOCK
    each = (blocks + splits - 1) // splits * BLOCK
    start = lowest + split * each
    stop = min(start + each, last + 1)

    number, key_at, value_at = tl.arange(0, GROUP), tl.arange(0, KEY), tl.arange(0, VALUE)
    head = kv_head * group + number
    is_head, is_key, is_value = number < group, key_at < KEY_SIZE, value_at < VALUE_SIZE
    query = tl.load(
        q + token * q_token + head[:, None] * q_head + key_at[None, :], mask=is_head[:, None] & is_key[None, :],
        other=0.0,
    )  # fmt: skip
    largest = tl.full((GROUP,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((GROUP,), dtype=tl.float32)
    mixed = tl.zeros((GROUP, VALUE), dtype=tl.float32)
    for begin in range(start, stop, BLOCK):
        position = begin + tl.arange(0, BLOCK)
        is_seen = position < stop
        page = tl.load(pages + first_page + position // PAGE, mask=is_seen, other=0).to(tl.int64)
        slot = (page * PAGE + position % PAGE) * kv_count + kv_head
        key = tl.load(
            keys + slot[:, None] * KEY_SIZE + key_at[None, :], mask=is_seen[:, None] & is_key[None, :], other=0.0
        ).to(query.dtype)
        value = tl.load(
            values + slot[:, None] * VALUE_SIZE + value_at[None, :], mask=is_seen[:, None] & is_value[None, :],
            other=0.0,
        ).to(query.dtype)  # fmt: skip
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        if HAS_SCALES:
            scores *= tl.load(key_scales + slot, mask=is_seen, other=0.0)[None, :]
        if HAS_SOFTCAP:
            scores = (2 * tl.sigmoid(2 * scores / softcap) - 1) * softcap
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        # Every block has a position that is seen, so that this is a number.
        larger = tl.maximum(largest, tl.max(scores, 1))
        kept = tl.exp(largest - larger)
        weights = tl.exp(scores - larger[:, None])
        total = total * kept + tl.sum(weights, 1)
        if HAS_SCALES:
            weights *= tl.load(value_scales + slot, mask=is_seen, other=0.0)[None, :]
        mixed = mixed * kept[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        largest = larger

    is_own = is_head[:, None] & is_value[None, :]
    if IS_PART:
        place = (split.to(tl.int64) * tl.num_programs(0) + row) * count + head
        tl.store(parts + place[:, None] * VALUE_SIZE + value_at[None, :], mixed, mask=is_own)
        tl.store(sums + place * 2, largest, mask=is_head)
        tl.store(sums + place * 2 + 1, total, mask=is_head)
    else:
        if HAS_SINKS:
            sink = tl.load(sinks + head, mask=is_head, other=0.0).to(tl.float32)
            larger = tl.maximum(largest, sink)
            kept = tl.exp(largest - larger)
            total = total * kept + tl.exp(sink - larger)
            mixed = mixed * kept[:, None]
        place = token * count + head
        result = mixed / total[:, None]
        tl.store(out + place[:, None] * VALUE_SIZE + value_at[None, :], result.to(out.dtype.element_ty), mask=is_own)


@triton.jit
def join_parts(
    parts, sums, rows, sinks, out, count, splits,
    SPLITS: tl.constexpr, VALUE_SIZE: tl.constexpr, VALUE: tl.constexpr, HAS_SINKS: tl.constexpr,
) -> None:  # fmt: skip
    """One head of one row from the parts that `attend_pages` left."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    split, own = tl.arange(0, SPLITS), tl.arange(0, VALUE)
    is_split, is_value = split < splits, own < VALUE_SIZE
    place = (split.to(tl.int64) * tl.num_programs(0) + row) * count + head
    largest = tl.load(sums + place * 2, mask=is_split, other=float("-inf"))
    total = tl.load(sums + place * 2 + 1, mask=is_split, other=0.0)
    most = tl.max(largest, 0)
    if HAS_SINKS:
        sink = tl.load(sinks + head).to(tl.float32)
        most = tl.maximum(most, sink)
    kept = tl.exp(largest - most)
    whole = tl.sum(total * kept, 0)
    if HAS_SINKS:
        whole += tl.exp(sink - most)
    mixed = tl.load(
        parts + place[:, None] * VALUE_SIZE + own[None, :], mask=is_split[:, None] & is_value[None, :], other=0.0
    )
    result = tl.sum(mixed * kept[:, None], 0) / whole
    token = tl.load(rows + row * 4).to(tl.int64)
    tl.store(out + (token * count + head) * VALUE_SIZE + own, result.to(out.dtype.element_ty), mask=is_value)


@triton.jit
def attend_chunks(
    q, keys, values, key_scales, value_scales, rows, pages, tiles, sinks, out,
    q_token, q_head, group, count, kv_count, window, scale, softcap,
    QUERIES: tl.constexpr, KEY_SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    PAGE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_SCALES: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
) -> None:  # fmt: skip
    """A tile: consecutive tokens of one row, each with its ``group`` queries of one head of the cache, side by side.

    ``rows [n, 4]``: its first token on the token axis, its tokens, where its pages begin, and the position of its first
    token, counted from there; ``tiles [n, 2]``: row, and which of its tokens is the first. Where ``ROWS``, there are so
    many rows, some without tokens, and tiles are counted row by row. Weights are powers of two. Writes
    ``out [T, count, VALUE_SIZE]``.
    """
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    if ROWS:
        own_row = tl.arange(0, ROWS)
        counts = (tl.load(rows + own_row * 4 + 1).to(tl.int32) + QUERIES // group - 1) // (QUERIES // group)
        ends = tl.cumsum(counts, 0)
        if tile >= tl.max(ends, 0):
            return
        row = tl.sum((ends <= tile).to(tl.int32), 0).to(tl.int64)
        begin = (tile - tl.sum(tl.where(own_row < row, counts, 0), 0)) * (QUERIES // group)
    else:
        row = tl.load(tiles + tile.to(tl.int64) * 2).to(tl.int64)
        begin = tl.load(tiles + tile.to(tl.int64) * 2 + 1)
    first = tl.load(rows + row * 4).to(tl.int32)
    length = tl.load(rows + row * 4 + 1).to(tl.int32)
    first_page = tl.load(rows + row * 4 + 2).to(tl.int64)
    before = tl.load(rows + row * 4 + 3).to(tl.int32)
    stop = tl.minimum(begin + QUERIES // group, length)

    lane, key_at, value_at = tl.arange(0, QUERIES), tl.arange(0, KEY), tl.arange(0, VALUE)
    own = begin + lane // group
    head = kv_head * group + lane % group
    token = (first + own).to(tl.int64)
    is_query, is_key, is_value = own < stop, key_at < KEY_SIZE, value_at < VALUE_SIZE
    query = tl.load(
        q + token[:, None] * q_token + head[:, None] * q_head + key_at[None, :],
        mask=is_query[:, None] & is_key[None, :], other=0.0,
    )  # fmt: skip
    # A number, so that a query that has seen nothing yet has a weight for it.
    largest = tl.full((QUERIES,), -1e30, dtype=tl.float32)
    total = tl.zeros((QUERIES,), dtype=tl.float32)
    if HAS_SINKS:
        largest = tl.load(sinks + head, mask=is_query, other=0.0).to(tl.float32) * 1.44269504
        total += 1.0
    mixed = tl.zeros((QUERIES, VALUE), dtype=tl.float32)
    lowest = 0
    if HAS_WINDOW:
        lowest = tl.maximum(0, before + begin - window + 1)
    for start in range(lowest, before + stop, BLOCK):
        position = start + tl.arange(0, BLOCK)
        is_there = position < before + stop
        page = tl.load(pages + first_page + position // PAGE, mask=is_there, other=0).to(tl.int64)
        slot = (page * PAGE + position % PAGE) * kv_count + kv_head
        key = tl.load(
            keys + slot[:, None] * KEY_SIZE + key_at[None, :], mask=is_there[:, None] & is_key[None, :], other=0.0
        ).to(query.dtype)
        value = tl.load(
            values + slot[:, None] * VALUE_SIZE + value_at[None, :], mask=is_there[:, None] & is_value[None, :],
            other=0.0,
        ).to(query.dtype)  # fmt: skip
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        if HAS_SCALES:
            scores *= tl.load(key_scales + slot, mask=is_there, other=0.0)[None, :]
        if HAS_SOFTCAP:
            scores = (2 * tl.sigmoid(2 * scores / softcap) - 1) * softcap
        is_seen = position[None, :] <= (before + own)[:, None]
        if HAS_WINDOW:
            is_seen &= position[None, :] > (before + own)[:, None] - window
        scores = tl.where(is_seen, scores * 1.44269504, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        kept = tl.exp2(largest - larger)
        weights = tl.exp2(scores - larger[:, None])
        total = total * kept + tl.sum(weights, 1)
        if HAS_SCALES:
            weights *= tl.load(value_scales + slot, mask=is_there, other=0.0)[None, :]
        mixed = mixed * kept[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        largest = larger

    place = token * count + head
    result = mixed / total[:, None]
    tl.store(
        out + place[:, None] * VALUE_SIZE + value_at[None, :], result.to(out.dtype.element_ty),
        mask=is_query[:, None] & is_value[None, :],
    )  # fmt: skip
