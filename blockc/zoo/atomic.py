"""Write a file so that after a crash at any instant it is there in full or not at all.

Temporary file in the same directory, fsync, rename, fsync of the directory. A temporary file that
outlives its writer is ignored by readers; whoever next holds the lock removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

TEMPORARY_SUFFIX: Final = ".tmp"


def write_atomically(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Make ``path`` hold the concatenation of ``parts``, which are consumed one by one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o644)
    try:
        try:
            for part in parts:
                write_all(descriptor, part)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writer_lock(path: Path, *, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Hold the lock file ``path``; yields False where the file system has no locks.

    Writers are correct without it. With it two of them do not store the same tensor twice, and
    every temporary file that its holder sees is a leftover. The kernel releases it when its holder
    dies. ``on_wait`` is called once if another process holds it; what it raises ends the wait.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield _lock(descriptor, on_wait)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, on_wait: Callable[[], None]) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def write_all(descriptor: int, part: bytes | memoryview) -> None:
    """``os.write`` may write less than it was given (2 GiB at most on Linux)."""
    rest = memoryview(part).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]
