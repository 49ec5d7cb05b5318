"""Triton kernels of linears. On a CPU they run in Triton's interpreter (``TRITON_INTERPRET=1``)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def integer_product(
    x, codes, scales, shifts, out, rows, outs, width, groups, steps,
    STEPS: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, HAS_SHIFT: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """``out [splits, rows, outs]``, one part for each split of the columns: sums come in one order, whatever runs."""
    EACH: tl.constexpr = 8 // BITS  # numbers in a byte
    BYTES: tl.constexpr = COLUMNS // EACH
    split = tl.program_id(1)
    row = tl.arange(0, ROWS)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    byte = tl.arange(0, BYTES)
    is_row, is_output = row[:, None] < rows, output[None, :] < outs
    wide = output.to(tl.int64)
    total = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    for number in range(STEPS):
        step = split * STEPS + number
        is_there = is_output & (step < steps)
        is_scale = (output < outs) & (step < steps)
        packed = tl.load(codes + wide[None, :] * (width // EACH) + step * BYTES + byte[:, None], mask=is_there, other=0)
        group = step * COLUMNS // GROUP
        scale = tl.load(scales + wide * groups + group, mask=is_scale, other=0.0).to(tl.float32)
        part = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
        sums = tl.zeros((ROWS,), dtype=tl.float32)
        for place in tl.static_range(EACH):
            value = tl.load(
                x + row[:, None] * width + step * COLUMNS + byte[None, :] * EACH + place,
                mask=is_row & (step < steps),
                other=0.0,
            )
            code = (packed >> (place * BITS)) & ((1 << BITS) - 1)
            weight = (code.to(tl.float32) - (1 << (BITS - 1))).to(value.dtype)
            part = tl.dot(value, weight, part, input_precision="ieee")
            if HAS_SHIFT:
                sums += tl.sum(value.to(tl.float32), 1)
        total += part * scale[None, :]
        if HAS_SHIFT:
            shift = tl.load(shifts + wide * groups + group, mask=is_scale, other=0.0).to(tl.float32)
            total += sums[:, None] * shift[None, :]
    place = split.to(tl.int64) * rows * outs + row[:, None] * outs + output[None, :]
    tl.store(out + place, total, mask=is_row & is_output)
