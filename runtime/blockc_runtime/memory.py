"""The memory of this process: what it holds, and how freed memory returns to the system.

In: nothing but the process. Out: bytes. Invariant: nothing here imports torch; where the system does not say (no
`/proc`) or the C library is not glibc, figures are None and the settings do nothing.

glibc raises the size up to which freed blocks stay in the process whenever a larger one is freed, up to 32 MiB: what a
load only passed through then stays, in pieces. So blocks of a loading engine return to the system from 128 KiB on.
Those of a serving one stay up to 32 MiB from the start, for its next step takes the same again.
"""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_STATUS: Final = Path("/proc/self/status")
_MACHINE: Final = Path("/proc/meminfo")
_GROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
_CLEAR_REFS: Final = Path("/proc/self/clear_refs")
# Of `malloc.h`.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MAPPED_FROM_BYTES: Final = 128 << 10
# The most that glibc accepts. At 4 MiB a decode step took 1.3 times as long, at 128 KiB 1.6 times (32 M parameters,
# float32, 16 rows): each block that returns to the system comes back page by page. So did a step of 2,048 prompt tokens
# at 1 MiB (246 M parameters, bfloat16).
_KEPT_BELOW_BYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Bytes that an engine holds, part by part as a plan's memory entry has them.

    ``runtime_bytes``: interpreter, libraries and plan, before anything of the plan was loaded. ``weights_bytes`` and
    ``sides_bytes``: of their tensors; ``blocks_bytes``: of weights that are there by turns, now; ``kv_bytes``: of the
    pages that were ever written; ``workspace_bytes``: the most that a step so far took beside them.
    ``loading_peak_bytes``: the most that all took together while they were loaded.
    """

    runtime_bytes: int
    weights_bytes: int
    sides_bytes: int
    kv_bytes: int
    workspace_bytes: int
    loading_peak_bytes: int
    blocks_bytes: int = 0

    @property
    def loaded_bytes(self) -> int:
        """All parts that the plan predicts."""
        return self.weights_bytes + self.blocks_bytes + self.sides_bytes + self.kv_bytes + self.workspace_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """Bytes in memory: this process' own, those of files that it maps, and the most of both at any time."""

    own_bytes: int
    file_bytes: int
    peak_bytes: int


def resident() -> Resident | None:
    """What the system says of this process."""
    try:
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        own, shared, file, peak = (
            int(fields[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem", "RssFile", "VmHWM")
        )
    except (OSError, KeyError, ValueError):
        return None
    return Resident(own_bytes=own + shared, file_bytes=file, peak_bytes=peak)


def machine_bytes() -> int | None:
    """Memory of this machine, or what of it this process' control group may use."""
    try:
        fields = dict(line.split(":", 1) for line in _MACHINE.read_text().splitlines() if ":" in line)
        total = int(fields["MemTotal"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        total = min(total, int(_GROUP_LIMIT.read_text()))
    return total


def before_loading() -> None:
    """From here on what is freed returns to the system at once, and all threads allocate from one heap."""
    _set(_M_ARENA_MAX, 1)
    _set(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)


def before_serving() -> None:
    """Return what loading left, and count peaks anew; blocks that a step frees are kept for the next one."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text("5")
    _set(_M_MMAP_THRESHOLD, _KEPT_BELOW_BYTES)
    _set(_M_TRIM_THRESHOLD, 4 * _KEPT_BELOW_BYTES)


def _set(parameter: int, value: int) -> None:
    libc = _glibc()
    if libc is not None:
        libc.mallopt(parameter, value)


def _glibc() -> Any:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
