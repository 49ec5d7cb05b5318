"""Kernels are built where there is a compiler, and everything works without them."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from blockc_runtime.native import build
from blockc_runtime.native.library import describe, kernels


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler")
def test_they_are_built_where_there_is_a_compiler() -> None:
    assert kernels() is not None, describe()


def _describe(**environment: str) -> str:
    code = "from blockc_runtime.native.library import describe; print(describe())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return done.stdout


def test_they_can_be_switched_off() -> None:
    assert "torch's own" in _describe(BLOCKC_NATIVE="0")


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match="no-such-compiler"):
        build.build()
    monkeypatch.setenv("CXX", f"{sys.executable} -m no_such_module")
    with pytest.raises(build.BuildError, match="failed"):
        build.build()


@pytest.mark.skipif(kernels() is None, reason="kernels are not built")
def test_stale_kernels_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from blockc_runtime.native import library

    monkeypatch.setattr(library, "source_digest", lambda: "other")
    with pytest.raises(library.KernelsError, match="other sources"):
        library.load.__wrapped__(library.usable_levels()[0])
