"""Waiting for what other processes do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


def eventually(holds: Callable[[], bool], within_s: float = 5.0) -> bool:
    """Whether something comes true in time."""
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        if holds():
            return True
        time.sleep(0.01)
    return holds()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
