"""Compile every kernel of Triton's for an H100, which takes no GPU: what the interpreter lets pass, this refuses.

Run by `test_compiles.py` in a process of its own, since the interpreter is chosen when Triton is imported. Prints a
line a kernel: its name, and how many 16-byte copies to shared memory it makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from blockc_runtime.ops.attention import kernels as attention
from blockc_runtime.ops.linear import kernels as linear
from blockc_runtime.ops.norm import kernels as norm

TARGET = GPUTarget("cuda", 90, 32)
_SCALES, _KEPT = ("key_scales", "value_scales"), {"*fp8e4nv": 1, "*i8": 2}
# Arguments that are not multiples of 16, whatever the model.
_ODD = {"count", "kv_count", "group", "splits", "outputs", "chunks", "first_bank", "first_output", "used"}


def compiled(
    kernel: Any,
    pointers: Mapping[str, str],
    constants: Mapping[str, Any],
    floats: tuple[str, ...] = (),
    *,
    name: str | None = None,
    **options: int,
) -> None:
    names = kernel.arg_names
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "fp32" if name in floats else "i32")
        for name in names
    }
    plain = [name for name in names if name not in constants and name not in floats]
    made = triton.compile(
        ASTSource(
            fn=kernel,
            signature=signature,
            constexprs={(names.index(name),): value for name, value in constants.items()},
            attrs={(names.index(n),): [["tt.divisibility", 16]] for n in plain if n in pointers or n not in _ODD},
        ),
        target=TARGET,
        options=options,
    )
    print(name or kernel.__name__, made.asm["ptx"].count("cp.async.cg"), sep="\t")


def low_rank(dtype: str, places: int, ranks: int, **single: int) -> None:
    tables = dict.fromkeys(("tiles", "used", "bank_0", "bank_1", "bank_2", "bank_3"), "*i64")
    sizes = {"PLACES": places, "RANKS": ranks, "ALIGNED": 8, **single}
    compiled(linear.low_rank_inner, {"x": dtype, "inner": "*fp32", **tables}, {**sizes, "COLUMNS": 64})
    operands = {"inner": "*fp32", **tables} | {f"y_{i}": dtype for i in range(4)}
    sizes |= {"WIDTH": 128, "SPLITS": 8, "BLOCKS": 4}
    compiled(linear.low_rank_outer, operands, {**sizes, "HAS_MORE": False, "IS_APART": False})
    compiled(linear.low_rank_outer, operands, {**sizes, "HAS_MORE": True, "IS_APART": False}, name="of more ranks")
    compiled(linear.low_rank_outer, operands, {**sizes, "HAS_MORE": False, "IS_APART": True}, name="apart")


def inputs(dtype: str) -> None:
    tables = dict.fromkeys(("tiles", "used", "bank_0", "bank_1", "bank_2", "bank_3"), "*i64")
    compiled(linear.scaled_inputs, {"x": dtype, **tables}, {"PLACES": 16, "COLUMNS": 128})


def heads(dtype: str, turn: bool, cache: str | None = None, **single: int) -> None:
    operands = dict.fromkeys(("q", "k", "v", "q_out", "cos", "sin"), dtype)
    operands |= dict.fromkeys(("keys", "values"), cache or dtype) | dict.fromkeys(_SCALES, "*fp32")
    sizes = {"HEADS": 32, "KEY_SIZE": 128, "VALUE_SIZE": 128, "HALF": 64, "VALUE": 128}
    compiled(
        attention.write_heads,
        {**operands, "slots": "*i64"},
        {**sizes, "TURN": turn, "KEPT": _KEPT.get(cache, 0), **single},
    )


def attend(
    dtype: str, table: str, size: int, is_part: bool, has_more: bool, cache: str | None = None, **single: int
) -> None:
    operands = dict.fromkeys(("q", "sinks", "out"), dtype) | dict.fromkeys(("keys", "values"), cache or dtype)
    operands |= dict.fromkeys(_SCALES, "*fp32")
    parts = {"parts": "*fp32", "sums": "*fp32", "rows": table}
    padded = triton.next_power_of_2(size)
    sizes = {"GROUP": 16, "KEY_SIZE": size, "VALUE_SIZE": size, "KEY": padded, "VALUE": padded, "PAGE": 16}
    options = {"BLOCK": 8192 // padded, "HAS_SOFTCAP": has_more, "HAS_SINKS": has_more, "IS_PART": is_part}
    options["HAS_SCALES"] = cache == "*i8"
    given = {**operands, **parts, "pages": table}
    compiled(attention.attend_pages, given, {**sizes, **options, **single}, ("scale", "softcap"))
    sizes = {"SPLITS": 16, "VALUE_SIZE": size, "VALUE": padded, "HAS_SINKS": has_more}
    compiled(attention.join_parts, {**parts, "sinks": dtype, "out": dtype}, sizes)


def prompts(
    dtype: str, size: int, queries: int, has_more: bool, cache: str | None = None, table: str = "*i32", **single: int
) -> None:
    operands = dict.fromkeys(("q", "sinks", "out"), dtype) | dict.fromkeys(("keys", "values"), cache or dtype)
    operands |= dict.fromkeys(_SCALES, "*fp32") | dict.fromkeys(("rows", "pages", "tiles"), table)
    padded = triton.next_power_of_2(size)
    sizes = {"QUERIES": queries, "KEY_SIZE": size, "VALUE_SIZE": size, "KEY": padded, "VALUE": padded, "PAGE": 16}
    options = {"BLOCK": 8192 // padded, "HAS_WINDOW": has_more, "HAS_SOFTCAP": has_more, "HAS_SINKS": has_more}
    options |= {"HAS_SCALES": cache == "*i8", "ROWS": 0}
    given = {**sizes, **options, **single}
    compiled(
        attention.attend_chunks, operands, given, ("scale", "softcap"), num_warps=8 if queries == 128 else 4,
        num_stages=2,
    )  # fmt: skip


def norms(dtype: str, size: int) -> None:
    compiled(norm.scaled_rows, dict.fromkeys(("x", "weight", "out"), dtype), {"BLOCK": size}, ("eps",), num_warps=8)
    gated = dict.fromkeys(("gate", "up", "out"), dtype)
    for is_silu in (True, False):
        compiled(norm.gated_rows, gated, {"IS_SILU": is_silu, "BLOCK": 1024})


if __name__ == "__main__":
    # Numbers that are 1 are constants to Triton, and tables are of both widths.
    low_rank("*bf16", 16, 16)
    low_rank("*bf16", 64, 64, outputs=1, chunks=1)
    inputs("*bf16")
    norms("*bf16", 4096)
    heads("*bf16", True)
    heads("*bf16", False, kv_count=1)
    heads("*bf16", True, "*fp8e4nv")
    heads("*bf16", True, "*i8")
    attend("*bf16", "*i32", 128, True, False)
    attend("*bf16", "*i64", 128, True, False, "*fp8e4nv")
    attend("*bf16", "*i64", 128, True, False, "*i8")
    attend("*bf16", "*i64", 256, False, True, splits=1, kv_count=1)
    attend("*fp32", "*i64", 96, True, True)
    prompts("*bf16", 128, 128, True, "*i8")
    prompts("*bf16", 128, 128, False, "*fp8e4nv", group=1)
    prompts("*bf16", 128, 128, False, table="*i64", ROWS=32)
    prompts("*fp32", 96, 32, True)
