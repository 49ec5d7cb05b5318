"""Triton kernels of linears. On a CPU they run in Triton's interpreter (``TRITON_INTERPRET=1``).

Codes come in runs of ``RUN`` columns, each within a group. With two codes to a byte, a byte holds one of a run and the
one at the same place of the next run, so that inputs and outputs of a run lie side by side.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def integer_product(
    x, codes, scales, shifts, out, rows, outs, width, groups, steps,
    STEPS: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, HAS_SHIFT: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, RUN: tl.constexpr,
) -> None:  # fmt: skip
    """``x [rows, width]`` -> ``out [splits, rows, outs]``, a part for each split of the columns.

    The scale of a group is applied to sums over a run. Parts are added up by who calls, in one order whatever runs.
    """
    EACH: tl.constexpr = 8 // BITS  # codes in a byte
    split = tl.program_id(1)
    row = tl.arange(0, ROWS)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, RUN)
    is_row, is_output = row < rows, output < outs
    wide = output.to(tl.int64)
    total = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    for number in range(STEPS):
        step = split * STEPS + number
        is_step = step < steps
        packed = tl.load(
            codes + wide[None, :] * (width // EACH) + step * RUN + column[:, None],
            mask=is_output[None, :] & is_step, other=0,
        )  # fmt: skip
        for place in tl.static_range(EACH):
            run = step * EACH + place
            value = tl.load(
                x + row[:, None] * width + run * RUN + column[None, :], mask=is_row[:, None] & is_step, other=0.0
            )
            code = (packed >> (place * BITS)) & ((1 << BITS) - 1)
            weight = (code.to(tl.float32) - (1 << (BITS - 1))).to(value.dtype)
            at = wide * groups + run * RUN // GROUP
            scale = tl.load(scales + at, mask=is_output & is_step, other=0.0).to(tl.float32)
            total += tl.dot(value, weight, input_precision="ieee") * scale[None, :]
            if HAS_SHIFT:
                shift = tl.load(shifts + at, mask=is_output & is_step, other=0.0).to(tl.float32)
                total += tl.sum(value.to(tl.float32), 1)[:, None] * shift[None, :]
    part = split.to(tl.int64) * rows * outs + row[:, None] * outs + output[None, :]
    tl.store(out + part, total, mask=is_row[:, None] & is_output[None, :])


@triton.jit
def integers_dense(
    codes, scales, shifts, out, outs, width, groups,
    GROUP: tl.constexpr, BITS: tl.constexpr, HAS_SHIFT: tl.constexpr, OUTPUTS: tl.constexpr, RUN: tl.constexpr,
) -> None:  # fmt: skip
    """The matrix itself, ``out [outs, width]``."""
    EACH: tl.constexpr = 8 // BITS
    step = tl.program_id(1)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, RUN)
    is_output = output < outs
    wide = output.to(tl.int64)
    packed = tl.load(
        codes + wide[:, None] * (width // EACH) + step * RUN + column[None, :], mask=is_output[:, None], other=0
    )
    for place in tl.static_range(EACH):
        run = step * EACH + place
        code = (packed >> (place * BITS)) & ((1 << BITS) - 1)
        at = wide * groups + run * RUN // GROUP
        scale = tl.load(scales + at, mask=is_output, other=0.0).to(tl.float32)
        value = (code.to(tl.float32) - (1 << (BITS - 1))) * scale[:, None]
        if HAS_SHIFT:
            value += tl.load(shifts + at, mask=is_output, other=0.0).to(tl.float32)[:, None]
        tl.store(
            out + wide[:, None] * width + run * RUN + column[None, :], value.to(out.dtype.element_ty),
            mask=is_output[:, None],
        )  # fmt: skip


@triton.jit
def one_of(number, a, b, c, d):
    """The ``number``-th of four."""
    return tl.where(number == 1, b, tl.where(number == 2, c, tl.where(number == 3, d, a)))


@triton.jit
def scaled_inputs(
    x, x_stride, tiles, used, bank_0, bank_1, bank_2, bank_3, first_bank, size,
    PLACES: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """Scale, in place, what linears read: ``COLUMNS`` of ``x [T, size]`` a program, for one tile."""
    tile, column = tl.program_id(0), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.load(tiles + tile * 4)
    count = tl.load(tiles + tile * 4 + 1)
    slot = tl.load(tiles + tile * 4 + 2).to(tl.int64)
    bank = tl.load(tiles + tile * 4 + 3) - first_bank
    if (tile < tl.load(used)) & (bank >= 0) & (bank < 4):
        address = tl.load(one_of(bank, bank_0, bank_1, bank_2, bank_3) + 4)
        if address != 0:
            is_column = column < size
            scale = tl.load(
                address.to(tl.pointer_type(x.dtype.element_ty)) + slot * size + column, mask=is_column, other=0.0
            ).to(tl.float32)
            place = tl.arange(0, PLACES)
            at = x + (first + place).to(tl.int64)[:, None] * x_stride + column[None, :]
            is_own = (place < count)[:, None] & is_column[None, :]
            tl.store(at, tl.load(at, mask=is_own, other=0.0).to(tl.float32) * scale[None, :], mask=is_own)


@triton.jit
def low_rank_inner(
    x, x_stride, tiles, used, bank_0, bank_1, bank_2, bank_3, first_bank, inner, outputs, chunks, size, columns,
    PLACES: tl.constexpr, RANKS: tl.constexpr, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr,
) -> None:  # fmt: skip
    """``x A`` of every place in a tile: ``inner [tiles, outputs, chunks, splits, PLACES, RANKS]`` float32.

    A program takes ``columns`` of x's ``size`` and ``RANKS`` ranks, for one tile and one output. Parts are added up by
    `low_rank_outer`, in one order. Programs of tiles that are not ``used``, and of banks other than ``first_bank ..
    first_bank + 3``, write nothing. ``ALIGNED`` divides all ranks and widths.
    """
    tile, split, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    output, begin = part // chunks, part % chunks * RANKS
    first = tl.load(tiles + tile * 4)
    count = tl.load(tiles + tile * 4 + 1)
    slot = tl.load(tiles + tile * 4 + 2).to(tl.int64)
    bank = tl.load(tiles + tile * 4 + 3) - first_bank
    if (tile < tl.load(used)) & (bank >= 0) & (bank < 4):
        table = one_of(bank, bank_0, bank_1, bank_2, bank_3)
        # What is masked is read many values at a time only if the mask's bound is known to divide, too.
        ranks, rank = tl.multiple_of(tl.load(table + 1), ALIGNED), tl.multiple_of(tl.load(table + 2), ALIGNED)
        is_held = output < tl.load(table + 3)
        is_held = is_held & (tl.load(table + 5 + output * 5, mask=is_held, other=0) != 0)
        if is_held & (begin < rank):
            a = tl.multiple_of(tl.load(table).to(tl.pointer_type(x.dtype.element_ty)), 16)
            a += slot * size * ranks + tl.multiple_of(tl.load(table + 5 + output * 5 + 2), ALIGNED) + begin
            place, number, column = tl.arange(0, PLACES), tl.arange(0, RANKS), tl.arange(0, COLUMNS)
            rows = x + (first + place).to(tl.int64)[:, None] * x_stride
            is_place, is_rank = place < count, begin + number < rank
            total = tl.zeros((PLACES, RANKS), dtype=tl.float32)
            start = split * columns
            stop = min(start + columns, size)
            for step in range(start, stop, COLUMNS):
                at = step + column
                is_column = at < stop
                value = tl.load(rows + at[None, :], mask=is_place[:, None] & is_column[None, :], other=0.0)
                weight = tl.load(
                    a + at.to(tl.int64)[:, None] * ranks + number[None, :], mask=is_column[:, None] & is_rank[None, :],
                    other=0.0,
                )  # fmt: skip
                total += tl.dot(value, weight, input_precision="ieee")
            own = (tile.to(tl.int64) * outputs * chunks + part) * tl.num_programs(1) + split
            tl.store(
                inner + own * PLACES * RANKS + place[:, None] * RANKS + number[None, :], total,
                mask=is_place[:, None] & is_rank[None, :],
            )  # fmt: skip


@triton.jit
def added_up(parts, is_own, PLACES: tl.constexpr, RANKS: tl.constexpr, SPLITS: tl.constexpr):
    """``[PLACES, RANKS]``: the parts that `low_rank_inner` left of one tile, output and run of ranks."""
    at = tl.arange(0, PLACES)[:, None] * RANKS + tl.arange(0, RANKS)[None, :]
    total = tl.zeros((PLACES, RANKS), dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(parts + split * PLACES * RANKS + at, mask=is_own, other=0.0)
    return total


@triton.jit
def low_rank_outer(
    inner, outputs, chunks, tiles, used, bank_0, bank_1, bank_2, bank_3, first_bank, first_output,
    y_0, y_1, y_2, y_3, stride_0, stride_1, stride_2, stride_3,
    PLACES: tl.constexpr, RANKS: tl.constexpr, SPLITS: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr,
    ALIGNED: tl.constexpr, HAS_MORE: tl.constexpr, IS_APART: tl.constexpr,
) -> None:  # fmt: skip
    """``y = scale * y + bias + inner B``, of which each bank has what it has; ``IS_APART``: ``y = inner B``.

    ``y_n [T, out]``: outputs from ``first_output`` on, ``BLOCKS`` times ``WIDTH`` columns of one a program, for one
    tile. ``HAS_MORE``: some bank has more than ``RANKS`` ranks.
    """
    tile, number, start = tl.program_id(0), tl.program_id(2), tl.program_id(1) * BLOCKS * WIDTH
    output = first_output + number
    first = tl.load(tiles + tile * 4)
    count = tl.load(tiles + tile * 4 + 1)
    slot = tl.load(tiles + tile * 4 + 2).to(tl.int64)
    bank = tl.load(tiles + tile * 4 + 3) - first_bank
    if (tile < tl.load(used)) & (bank >= 0) & (bank < 4):
        table = one_of(bank, bank_0, bank_1, bank_2, bank_3)
        is_held = output < tl.load(table + 3)
        address = tl.load(table + 5 + output * 5, mask=is_held, other=0)
        width = tl.multiple_of(tl.load(table + 5 + output * 5 + 1, mask=is_held, other=0), ALIGNED)
        rank = tl.multiple_of(tl.load(table + 2, mask=address != 0, other=0), ALIGNED)
        scale_address = tl.load(table + 5 + output * 5 + 3, mask=is_held, other=0)
        bias_address = tl.load(table + 5 + output * 5 + 4, mask=is_held, other=0)
        if start < width:
            y = one_of(number, y_0, y_1, y_2, y_3)
            stride = one_of(number, stride_0, stride_1, stride_2, stride_3)
            b = tl.multiple_of(address.to(tl.pointer_type(y_0.dtype.element_ty)), 16) + slot * rank * width
            place, row = tl.arange(0, PLACES), tl.arange(0, RANKS)
            is_place = place < count
            rows = y + (first + place).to(tl.int64)[:, None] * stride
            parts = inner + (tile.to(tl.int64) * outputs + output) * chunks * SPLITS * PLACES * RANKS
            values = added_up(parts, is_place[:, None] & (row < rank)[None, :], PLACES, RANKS, SPLITS)
            values = values.to(y_0.dtype.element_ty)
            for begin in range(start, min(start + BLOCKS * WIDTH, width), WIDTH):
                column = begin + tl.arange(0, WIDTH)
                is_column = column < width
                weight = tl.load(
                    b + row.to(tl.int64)[:, None] * width + column[None, :],
                    mask=(row < rank)[:, None] & is_column[None, :], other=0.0,
                )  # fmt: skip
                total = tl.dot(values, weight, input_precision="ieee")
                if HAS_MORE:
                    # Not read ahead: parts would fill the shared memory.
                    for chunk in tl.range(1, (rank + RANKS - 1) // RANKS, num_stages=1):
                        at = chunk * RANKS + row
                        others = added_up(
                            parts + chunk * SPLITS * PLACES * RANKS, is_place[:, None] & (at < rank)[None, :],
                            PLACES, RANKS, SPLITS,
                        )  # fmt: skip
                        weight = tl.load(
                            b + at.to(tl.int64)[:, None] * width + column[None, :],
                            mask=(at < rank)[:, None] & is_column[None, :], other=0.0,
                        )  # fmt: skip
                        total += tl.dot(others.to(weight.dtype), weight, input_precision="ieee")
                is_own = is_place[:, None] & is_column[None, :]
                if not IS_APART:
                    value = tl.load(rows + column[None, :], mask=is_own, other=0.0).to(tl.float32)
                    own = slot * width + column
                    scale = scale_address.to(tl.pointer_type(y_0.dtype.element_ty)) + own
                    value *= tl.load(scale, mask=is_column & (scale_address != 0), other=1.0).to(tl.float32)[None, :]
                    bias = bias_address.to(tl.pointer_type(y_0.dtype.element_ty)) + own
                    value += tl.load(bias, mask=is_column & (bias_address != 0), other=0.0).to(tl.float32)[None, :]
                    total += value
                tl.store(rows + column[None, :], total, mask=is_own)
