"""blockc: serve many fine-tunes of a few language models on few devices.

A *spec* (``*.blk``) says what is wanted, the *zoo* stores model blocks once by content, and the *plan* says
what will run where, and why. Importing this package imports nothing heavy: names load on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "compile_deployment": "blockc.compiler",
    "load": "blockc.spec",
    "ExecutionPlan": "blockc.plan",
    "Zoo": "blockc.zoo",
}

__all__ = ["ExecutionPlan", "Zoo", "__version__", "compile_deployment", "load"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
