"""Compile the kernels: one shared library for each level of instructions, next to their sources.

In: the C++ files of this folder and the system's compiler. Out: ``kernels.<level>.so``. Runs when blockc is installed,
and as ``python -m blockc_runtime.native``. Needs the standard library only, neither torch nor its headers: kernels are
plain C functions over addresses.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parent
# OpenMP's symbols are left open: they are found in the library that torch itself uses, so that there is one set of
# threads.
_COMPILE = ("-std=c++17", "-O3", "-fno-math-errno", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wno-psabi")
_X86 = {
    "amx": ("-march=cooperlake", "-mamx-tile", "-mamx-bf16", "-mprefer-vector-width=512"),
    "avx512_bf16": ("-march=cooperlake", "-mprefer-vector-width=512"),
    "avx512": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    "avx2": ("-march=x86-64-v3",),
}


class BuildError(Exception):
    """The kernels cannot be built, and why."""


def levels() -> Mapping[str, tuple[str, ...]]:
    """Levels of instructions of this kind of machine, the best first, each with its flags."""
    return _X86 if platform.machine().lower() in ("x86_64", "amd64") else {"generic": ()}


def library_path(level: str) -> Path:
    """Where the library of a level lies."""
    return FOLDER / f"kernels.{level}.so"


def source_digest() -> str:
    """SHA-256 of the sources."""
    digest = hashlib.sha256()
    for path in sorted((*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def build() -> tuple[Path, ...]:
    """Raises `BuildError` where there is no compiler, or it refuses the sources."""
    compiler = _compiler()
    define = f'-DBLOCKC_SOURCE="{source_digest()}"'
    built = []
    for level, flags in levels().items():
        with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
            objects = []
            for source in sorted(FOLDER.glob("*.cpp")):
                objects.append(f"{scratch}/{source.stem}.o")
                _run([*compiler, *_COMPILE, *flags, define, "-c", str(source), "-o", objects[-1]])
            _run([*compiler, "-shared", *objects, "-o", f"{scratch}/kernels.so"])
            os.replace(f"{scratch}/kernels.so", library_path(level))
        built.append(library_path(level))
    return tuple(built)


def _compiler() -> list[str]:
    if platform.system() != "Linux":
        raise BuildError(f"they are built on Linux only, not on {platform.system()}")
    if named := os.environ.get("CXX"):
        return named.split()
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if found is None:
        raise BuildError("there is no C++ compiler")
    return [found]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a compiler
    except OSError as error:
        raise BuildError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise BuildError(
            f"{command[0]} failed: {next((line for line in lines if 'error' in line), ''.join(lines[:1]))}"
        )
