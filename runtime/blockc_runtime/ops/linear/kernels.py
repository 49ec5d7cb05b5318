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
