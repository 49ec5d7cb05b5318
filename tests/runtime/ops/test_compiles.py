"""Kernels of Triton's compile for a GPU, where the interpreter is all that runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def test_every_kernel_compiles_for_an_h100(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "runtime"), str(ROOT / "grammar")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/runtime/ops/compile_kernels.py")],
        env={**environment, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    copies = [line.split("\t") for line in done.stdout.splitlines()]
    assert {name for name, _ in copies} >= {
        "low_rank_inner",
        "low_rank_outer",
        "write_heads",
        "attend_pages",
        "attend_chunks",
    }
    # What streams through memory does so 16 bytes at a time, ahead of what is multiplied: both operands of a product.
    streaming = {"low_rank_inner": 6, "low_rank_outer": 6, "attend_pages": 1, "attend_chunks": 1}
    assert all(int(count) >= streaming[name] for name, count in copies if name in streaming)
