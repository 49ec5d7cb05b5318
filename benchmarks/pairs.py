"""Two calls measured in turns, and where a result is written with what made it."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def seconds(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def paired(one: Callable[[], None], other: Callable[[], None], pairs: int) -> dict[str, float]:
    """`paired_values` of how long two calls take."""
    return paired_values(lambda: seconds(one), lambda: seconds(other), pairs)


def paired_values(one: Callable[[], float], other: Callable[[], float], pairs: int) -> dict[str, float]:
    """Median of ``one / other`` over pairs in turns, with the 95 % interval of the median (order statistics)."""
    for call in (one, other, one, other):
        call()
    ratios = []
    for turn in range(pairs):
        first, second = (one, other) if turn % 2 else (other, one)
        values = {first: first(), second: second()}
        ratios.append(values[one] / values[other])
    ratios.sort()
    spread = 1.96 * math.sqrt(pairs) / 2
    low, high = max(0, int(pairs / 2 - spread)), min(pairs - 1, math.ceil(pairs / 2 + spread))
    return {"ratio": statistics.median(ratios), "low": ratios[low], "high": ratios[high]}


def text_of(value: Any) -> str:
    if isinstance(value, dict) and "ratio" in value:
        return f"{value['ratio']:.3f}  ({value['low']:.3f} to {value['high']:.3f})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(out: Path, module: str, found: Mapping[str, Any], *, device: str, commit: str | None = None) -> None:
    """Figures with the machine, the commit and the command that made them."""
    if commit is None:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    about: dict[str, Any] = {"commit": commit, "command": " ".join(["python", "-m", module, *_arguments()])}
    about |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if device == "cuda":
        about["device"] = torch.cuda.get_device_name()
    out.write_text(json.dumps(about | dict(found), indent=1) + "\n")


def _arguments() -> list[str]:
    """As they were written, without where the result goes."""
    kept, skip = [], False
    for argument in sys.argv[1:]:
        if not skip and argument not in ("--out", "--commit"):
            kept.append(argument)
        skip = argument in ("--out", "--commit")
    return kept
