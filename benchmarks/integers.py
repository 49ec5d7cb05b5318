"""Linears on matrices of integers beside the same matrix dense, by the number of rows.

    python -m benchmarks.integers [--device cuda] [--out results.json]

Normal random values in bfloat16, one matrix of a 7 B model's MLP; every figure is the time of the integers over that of
the dense matrix in the form that the runtime would multiply it in, measured in turns: the median of pairs, with the
95 % interval of that median. Matrices take turns, so that caches of the device do not hold them.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.pairs import paired, text_of, write
from blockc.delta.integers import quantize
from blockc_runtime.ops.integers import IntegerMatrix
from blockc_runtime.ops.linear.by_kernel import kernel_weights
from blockc_runtime.ops.linear.integers import IntegerWeights
from blockc_runtime.ops.linear.weights import DenseWeights, LinearWeights, PackedWeights, packs

OUT, IN = 11008, 4096
FORMS = {"int8, a scale a row": (8, IN), "int8, groups of 128": (8, 128), "int4, groups of 64": (4, 64)}
ROWS = (1, 4, 16, 64, 256, 1024)


def integers(value: Tensor, bits: int, group: int, device: str) -> IntegerWeights:
    codes, scale = quantize(value, bits=bits, group=group, dtype=torch.bfloat16)
    matrix = IntegerMatrix(codes=codes.to(device), scale=scale.to(device), shift=None, bits=bits, group=group)
    return IntegerWeights([matrix], [None])


def dense(value: Tensor, device: str) -> LinearWeights:
    own = value.bfloat16().to(device)
    on = torch.device(device)
    form = kernel_weights(own.dtype, on) or (PackedWeights if packs(own.dtype, on) else DenseWeights)
    return form([own], [None])


def calls(weights: Sequence[LinearWeights], x: Tensor, repeat: int) -> Callable[[], None]:
    """``repeat`` multiplications, by one matrix after the other."""
    turn = itertools.cycle(weights)

    def call() -> None:
        with torch.inference_mode():
            for _ in range(repeat):
                next(turn)(x)
            if x.is_cuda:
                torch.cuda.synchronize()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit")
    options = parser.parse_args()
    torch.manual_seed(0)
    copies, repeat = (4, 20) if options.device == "cuda" else (6, 6)
    value = torch.randn(OUT, IN) * 0.02
    plain = [dense(value, options.device) for _ in range(copies)]
    found = {}
    for name, (bits, group) in FORMS.items():
        own = [integers(value, bits, group, options.device) for _ in range(copies)]
        found[f"{name}: bytes / dense"] = own[0].nbytes / (2 * OUT * IN)
        for rows in options.rows:
            x = torch.randn(1, rows, IN).bfloat16().to(options.device)
            key = f"{name}, {rows} rows / dense"
            found[key] = paired(calls(own, x, repeat), calls(plain, x, repeat), options.pairs)
            print(f"{key:44} {text_of(found[key])}", flush=True)
    if options.out is not None:
        write(options.out, "benchmarks.integers", found, device=options.device, commit=options.commit)


if __name__ == "__main__":
    main()
