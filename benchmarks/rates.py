"""What this machine can do right now: the rates that limits are computed from."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """``read_bytes_per_s``: streaming reads of memory; ``gemm_flops_per_s``: a large product in ``dtype``.

    ``dtype``: of bfloat16 and float32 the one in which torch multiplies faster, which without AVX-512 is float32.
    """

    read_bytes_per_s: float
    gemm_flops_per_s: float
    dtype: torch.dtype


def measure_rates(repeats: int = 5) -> Rates:
    """Medians of a few runs each."""
    data = torch.ones(1 << 27, dtype=torch.float32)  # 512 MiB, far beyond any cache
    reads = [_seconds(data.sum) for _ in range(repeats)]
    dtype = max((torch.bfloat16, torch.float32), key=lambda dtype: _gemm_flops_per_s(256, dtype, repeats))
    return Rates(
        read_bytes_per_s=data.nbytes / statistics.median(reads),
        gemm_flops_per_s=_gemm_flops_per_s(2048, dtype, repeats),
        dtype=dtype,
    )


def origin(module: str = "benchmarks") -> dict[str, object]:
    """Where figures come from: command, commit, machine, versions."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "command": " ".join(["python -m", module, *sys.argv[1:]]),
        "commit": commit.stdout.strip() or None,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _gemm_flops_per_s(size: int, dtype: torch.dtype, repeats: int) -> float:
    left = torch.randn(size, size, dtype=dtype)
    right = torch.randn(size, size, dtype=dtype)
    products = [_seconds(lambda: left @ right) for _ in range(repeats + 2)][2:]
    return 2 * size**3 / statistics.median(products)


def _seconds(run: object) -> float:
    start_s = time.perf_counter()
    run()  # type: ignore[operator]
    return time.perf_counter() - start_s
