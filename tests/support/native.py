"""The kernels of this machine, one level of instructions at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from blockc_runtime.native import library

LEVELS = library.usable_levels() if library.kernels() is not None else ()


@contextmanager
def using(level: str) -> Iterator[None]:
    """Ops call the kernels of that level."""
    with patch.object(library, "_best", lambda: library.load(level)):
        yield
