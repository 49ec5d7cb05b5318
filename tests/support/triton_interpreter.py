"""Triton's interpreter on a CPU, where kernels are tested that nothing here could compile."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any


def interpret() -> None:
    """To be called before anybody imports Triton."""
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if find_spec("triton") is not None:
        _count_by_what_was_loaded()


def _count_by_what_was_loaded() -> None:
    """Let ``range`` take numbers that a kernel has loaded.

    They are arrays of one element there, which NumPy 2.4 no longer makes numbers of by itself (Triton 3.6).
    """
    from triton.runtime import interpreter

    plain = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        plain(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
