"""What this machine has, as far as it can be told without loading anything heavy.

In: the operating system, and `nvidia-smi` where it is installed. Out: plain data. Never raises: what cannot be told is
None or missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

_PATIENCE_S = 10.0
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, as its driver names it."""

    name: str
    memory_bytes: int


def memory_bytes() -> int | None:
    """Of the whole machine, or of its container if that has less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    limits = [limit for limit in map(_limit, _LIMITS) if limit is not None]
    return min([total, *limits])


def gpus() -> tuple[Gpu, ...]:
    """NVIDIA's, in the driver's order."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ()
    found = []
    for line in done.stdout.splitlines():
        name, _, mib = line.rpartition(",")
        if mib.strip().isdigit():
            found.append(Gpu(name=name.strip(), memory_bytes=int(mib) * _MIB))
    return tuple(found)


_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def _limit(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            text = file.read(64).strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdigit() else None
