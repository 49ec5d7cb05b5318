"""Triton's interpreter on a CPU, where kernels are tested that nothing here could compile."""

from __future__ import annotations

import inspect
import os
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any


def interpret() -> None:
    """To be called before anybody imports Triton."""
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if find_spec("triton") is not None:
        _count_by_what_was_loaded()
        _know_builtins()
        _compute_no_checks()


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


def _know_builtins() -> None:
    """Look through Triton's modules for what kernels may call once, and not before each program and function."""
    from triton.language import core
    from triton.runtime import interpreter

    @cache
    def names(pkg: Any) -> list[str]:
        return [name for name, member in inspect.getmembers(pkg) if core.is_builtin(member)]

    def patched(pkg: Any, builder: Any, scope: Any) -> None:
        for name in names(pkg):
            member = getattr(pkg, name)
            if core.is_builtin(member):  # and not patched already, by the function that calls this one
                interpreter._patch_attr(pkg, name, member, builder, scope)

    interpreter._patch_builtin = patched


def _compute_no_checks() -> None:
    """Without what tells whether integers overflow: a quarter of the time, and thrown away unless one debugs."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    builder.options = replace(builder.options, sanitize_overflow=False)
