"""Kernels by themselves: attention of prompts, products by base weights, low-rank terms, beside torch's own.

    python -m benchmarks.kernels attention --shape mid --level avx512_bf16
    python -m benchmarks.kernels products --rows 1 16 2048
    python -m benchmarks.kernels sides --rows 16 --tokens 1

Prints the least of many calls in milliseconds of CPU time of this process (all its threads together) and of a clock.
Each call has operands that no cache holds, as a step has: weights, sides and caches of as many layers as it takes.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from unittest.mock import patch

# Read when torch is imported: as the server sets them for its engine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch

from benchmarks.fleet import SHAPES, Shape
from blockc_runtime.native import library
from blockc_runtime.ops.attention import cpu, native
from blockc_runtime.ops.attention.batch import kv_batch
from blockc_runtime.ops.attention.cpu import PagedLayer
from blockc_runtime.ops.attention.rows import KvRow
from blockc_runtime.ops.linear import by_kernel
from blockc_runtime.ops.linear import cpu as linear_cpu
from blockc_runtime.ops.linear import native as linear_native
from blockc_runtime.ops.linear.sides import LowRankOutput, LowRankWeights
from blockc_runtime.ops.linear.weights import PackedWeights, packs
from blockc_runtime.ops.sides import side_batch

# Beyond the last cache of a core's share.
_FAR_BYTES = 256 << 20
_PAGE_TOKENS = 16
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=["attention", "products", "sides"])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="mid")
    parser.add_argument("--level", choices=library.usable_levels(), help="by default the best")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--cache", choices=["same", "fp8", "int8"], default="same", help="the dtype of keys and values")
    parser.add_argument("--rows", type=int, nargs="+", default=[16], help="of a step; products: one figure each")
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512, 2048], help="of a row; 1: decode")
    parser.add_argument("--context", type=int, default=0, help="attention: positions before them")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each figure is tried for")
    options = parser.parse_args()
    level = options.level or library.usable_levels()[0]
    dtype = getattr(torch, options.dtype)
    shape = SHAPES[options.shape]
    with patch.object(library, "_best", lambda: library.load(level)):
        print(f"{options.shape}, {options.dtype}, {level}, {torch.get_num_threads()} threads")
        for rows in options.rows:
            if options.what == "products":
                products(shape, dtype, rows, options.seconds)
                continue
            for tokens in options.tokens:
                if options.what == "attention":
                    cache = {"same": dtype, "fp8": torch.float8_e4m3fn, "int8": torch.int8}[options.cache]
                    attention(shape, dtype, cache, rows, tokens, options.context, options.seconds)
                else:
                    sides(shape, dtype, rows, tokens, options.seconds)


def attention(
    shape: Shape, dtype: torch.dtype, cache: torch.dtype, rows: int, tokens: int, context: int, seconds: float
) -> None:
    """One layer of ``rows`` rows of ``tokens`` each, after ``context`` positions; rotation is not in it."""
    size, each = shape.hidden // shape.heads, -(-(tokens + context) // _PAGE_TOKENS)
    own = [
        KvRow(first=i * tokens, count=tokens, start=context, pages=tuple(range(i * each, (i + 1) * each)))
        for i in range(rows)
    ]
    batch = kv_batch(own, page_tokens=_PAGE_TOKENS, window=None, dtype=dtype, device=CPU)
    slots = rows * each * _PAGE_TOKENS
    layers = max(1, min(shape.layers, _FAR_BYTES // (2 * slots * shape.kv_heads * size * dtype.itemsize)))
    pools = [_filled(slots, shape.kv_heads, size, cache) for _ in range(layers)]
    q, k, v = (
        torch.randn(1, rows * tokens, count, size, dtype=dtype).transpose(1, 2)
        for count in (shape.heads, shape.kv_heads, shape.kv_heads)
    )
    seen = rows * tokens * (context + (tokens + 1) / 2)
    flops = 4 * shape.heads * size * seen
    read_bytes = 2 * rows * (context + tokens) * shape.kv_heads * (size * cache.itemsize + 4 * (cache == torch.int8))
    for name, call in (("blockc", native.attention), ("torch", cpu.attention)):
        took = least([partial(call, q, k, v, pool, batch, size**-0.5, None, None) for pool in pools], seconds)
        report(f"{rows} x {tokens} after {context}, {name}", took, flops, read_bytes)


def _filled(slots: int, kv_heads: int, size: int, cache: torch.dtype) -> PagedLayer:
    held = [torch.zeros(slots, kv_heads, size, dtype=cache) for _ in range(2)]
    scales = [torch.zeros(slots, kv_heads) for _ in range(2)]
    layer = PagedLayer(
        keys=held[0], values=held[1], page_tokens=_PAGE_TOKENS,
        scales=(scales[0], scales[1]) if cache == torch.int8 else None,
    )  # fmt: skip
    layer.write(torch.arange(slots), *(torch.randn(slots, kv_heads, size) for _ in range(2)))
    return layer


def linears_of(shape: Shape) -> list[tuple[tuple[int, ...], int]]:
    """Outputs and inputs of a layer's linears, those that read the same together."""
    kv = shape.kv_heads * shape.hidden // shape.heads
    return [
        ((shape.hidden, kv, kv), shape.hidden),
        ((shape.hidden,), shape.hidden),
        ((shape.intermediate, shape.intermediate), shape.hidden),
        ((shape.hidden,), shape.intermediate),
    ]


def products(shape: Shape, dtype: torch.dtype, rows: int, seconds: float) -> None:
    """The four products of a layer, over as many layers as no cache holds."""
    sizes = linears_of(shape)
    values = sum(sum(outs) * size for outs, size in sizes)
    layers = max(1, _FAR_BYTES // (values * dtype.itemsize))
    forms: dict[str, object] = {}
    if packs(dtype, CPU):
        forms["oneDNN"] = PackedWeights
    kinds = by_kernel.forms_of(dtype, CPU)
    forms.update({kind.__name__: kind for kind in kinds})
    xs = {size: torch.randn(1, rows, size, dtype=dtype) for size in (shape.hidden, shape.intermediate)}
    for name, form in forms.items():
        made = [
            (size, form([torch.randn(out, size, dtype=dtype) for out in outs], [None] * len(outs)))  # type: ignore[operator]
            for _ in range(layers)
            for outs, size in sizes
        ]

        def step(made: Sequence[tuple[int, Callable[..., object]]] = made) -> None:
            for size, weights in made:
                weights(xs[size])

        took = least([step], seconds)
        count = values * layers
        report(f"{rows} rows, {layers} layers, {name}", took, 2 * rows * count, count * dtype.itemsize)


def sides(shape: Shape, dtype: torch.dtype, rows: int, tokens: int, seconds: float, rank: int = 16) -> None:
    """The low-rank terms of all seven linears of a layer, each row with its own."""
    sizes = linears_of(shape)
    values = sum(rank * (out + size) for outs, size in sizes for out in outs)
    layers = max(1, min(shape.layers, 2 * _FAR_BYTES // (rows * values * dtype.itemsize)))
    made = []
    for _ in range(layers):
        for outs, size in sizes:
            outputs = tuple(
                LowRankOutput(
                    output=i, rank_start=rank * i, rank_stop=rank * (i + 1), b=torch.randn(rows, rank, out, dtype=dtype)
                )
                for i, out in enumerate(outs)
            )
            made.append(LowRankWeights(a=torch.randn(rows, size, rank * len(outs), dtype=dtype), outputs=outputs))
    xs = {size: torch.randn(1, rows * tokens, size, dtype=dtype) for size in (shape.hidden, shape.intermediate)}
    ys = [torch.zeros(1, rows * tokens, sum(outs), dtype=dtype).split_with_sizes(outs, -1) for outs, _ in sizes]
    batch = side_batch([(tokens, row) for row in range(rows)], device=CPU)
    for name, add in (("blockc", linear_native._add_low_rank), ("torch", linear_cpu.add_low_rank)):

        def step(add: Callable[..., None] = add) -> None:
            for i, weights in enumerate(made):
                add(ys[i % len(ys)], xs[weights.a.shape[1]], weights, batch)

        took = least([step], seconds)
        nbytes = rows * values * layers * dtype.itemsize
        report(f"{rows} x {tokens}, {layers} layers, {name}", took, 2 * rows * tokens * values * layers, nbytes)


def least(calls: Sequence[Callable[[], object]], seconds: float) -> tuple[float, float]:
    """Of CPU and of a clock, in seconds; calls in turn, each many times."""
    with torch.inference_mode():
        for call in calls[:2]:
            call()
        best_cpu_s = best_s = float("inf")
        stop_s = time.perf_counter() + seconds
        while time.perf_counter() < stop_s:
            for call in calls:
                cpu_s, start_s = time.process_time(), time.perf_counter()
                call()
                took_s, took_cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
                best_s, best_cpu_s = min(best_s, took_s), min(best_cpu_s, took_cpu_s)
    return best_cpu_s, best_s


def report(title: str, took: tuple[float, float], flops: float, read_bytes: float) -> None:
    cpu_s, wall_s = took
    print(
        f"  {title:<44}{cpu_s * 1e3:9.3f} ms CPU {wall_s * 1e3:9.3f} ms"
        f" {flops / wall_s / 1e9:9.1f} GFLOP/s {read_bytes / wall_s / 1e9:8.1f} GB/s"
    )


if __name__ == "__main__":
    main()
