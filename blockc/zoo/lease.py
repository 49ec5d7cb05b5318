"""Leases: what a process has put into a zoo, or found there, and no plan names yet.

    zoo/leases/<host>.<pid>.<random>        one digest a line, the file locked by the process that wrote it

In: digests, added under the zoo's lock. Out: all digests of leases in force. Invariant: a collection, which holds
the zoo's lock as well, sees every digest that a living process relies on. The kernel unlocks the file of a process
that dies, and its lease ends with that. The locks of another host may not be visible here (network file systems), so
a lease from there is in force for a day after it was last added to.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from blockc.zoo.atomic import write_all

_FOREIGN_S: Final = 24 * 3600.0
_LINE_BYTES: Final = 65


def host_name() -> str:
    """The name of the machine, as references and leases record it."""
    return os.uname().nodename or "localhost"


class Lease:
    """A process' own lease, in force while the object lives."""

    def __init__(self, directory: Path) -> None:
        name = f"{host_name()}.{os.getpid()}.{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(directory / name, flags, 0o644)
        weakref.finalize(self, _end, self._descriptor, directory / name, os.getpid())
        self._held: set[str] = set()
        with contextlib.suppress(OSError):  # without locks nothing is ever collected
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def add(self, digests: Iterable[str]) -> None:
        """Keep what these name, until the process ends. Call it with the zoo's lock held."""
        fresh = sorted(set(digests) - self._held)
        if fresh:
            write_all(self._descriptor, "".join(f"{digest}\n" for digest in fresh).encode())
            self._held.update(fresh)


def leased(directory: Path) -> set[str]:
    """Digests of all leases in force."""
    found: set[str] = set()
    for path in _files(directory):
        with contextlib.suppress(FileNotFoundError):  # it ended since it was listed
            data = path.read_bytes() if _in_force(path) else b""
            # A line that a crash cut short is of a put that did not happen either.
            found.update(data[: len(data) // _LINE_BYTES * _LINE_BYTES].decode("ascii", "replace").split())
    return found


def sweep(directory: Path) -> None:
    """Remove leases that have ended. Call it with the zoo's lock held: a lease is locked before that is released."""
    for path in _files(directory):
        with contextlib.suppress(FileNotFoundError):
            if not _in_force(path):
                os.unlink(path)


def _end(descriptor: int, path: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child has a copy of the descriptor, and ends nothing
        with contextlib.suppress(OSError):
            os.unlink(path)
    os.close(descriptor)


def _files(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:  # a zoo that nothing has been put into since there are leases
        return []


def _in_force(path: Path) -> bool:
    host = path.name.rsplit(".", 2)[0]
    if host != host_name():
        return time.time() - path.stat().st_mtime < _FOREIGN_S
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
