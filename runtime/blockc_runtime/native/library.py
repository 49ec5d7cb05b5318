"""The compiled kernels as Python calls.

In: the libraries that `build` left. Out: :class:`Kernels`, or the reason why torch's own functions are used.
Invariant: a library of other sources, or for instructions that this CPU lacks, is not used.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from ctypes import c_char_p, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from blockc_runtime.native.build import levels, library_path, source_digest

# What kernels know as element types.
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
# `python -m benchmarks` compares both ways; so do tests.
_SWITCH = "BLOCKC_NATIVE"


class Tokens(c_int64):
    """As many as a launch has tokens, or some number of the model's times that."""


class Written(c_void_p):
    """Where a kernel puts what comes of it."""


_P, _L, _I, _F, _T, _W = c_void_p, c_int64, c_int, c_float, Tokens, Written
# An address, and the strides of tokens and heads.
_HEADS = (_P, _L, _L)
_ATTENTION = (_P, _P, _L, _P, _P, _P, _P, _P, _L, _L, _L, _L, _P, _P, _L, _L, _F, _F, _P, _W, _I)
_OF_ALL = {
    "add": (_I, _P, _P, _W, _T),
    "rms_norm": (_I, _P, _L, _P, _W, _T, _L, _F),
    "gated": (_I, _P, _L, _P, _L, _W, _T, _L, _I),
    "rotary": (_I, _P, _L, _L, _P, _P, _L, _P, _L, _L, _L),
    "low_rank": (_I, _P, _L, _L, _P, _L, _L, _P, _L, _P, _P, _L, _I),
    "attend": (_I, _I, *_HEADS, _L, *_HEADS, *_HEADS, *_ATTENTION),
    "attend_chunks": (_I, _I, *_HEADS, _L, *_HEADS, *_HEADS, *_ATTENTION),
    "write_cache": (_I, _I, _P, _L, _L, _P, _P, _P, _L, _L, _L),
    "to_panels": (_P, _P, _L, _L, _L),
    "by_panels": (_P, _L, _P, _P, _W, _L, _T, _L, _L, _I),
    "run": (_P, _L),
}
# Of levels that multiply pairs of bfloat16.
_OF_PAIRS = {
    "to_tiles": (_P, _P, _L, _L, _L),
    "by_tiles": (_P, _L, _P, _P, _W, _L, _T, _L, _L, _I),
}
# Of the level `amx` alone.
_OF_AMX = {
    "to_integer_tiles": (_P, _I, _P, _L, _L),
    "by_integer_tiles": (_P, _L, _P, _I, _P, _L, _P, _L, _L, _L, _L, _I),
}
SIGNATURES = _OF_ALL | _OF_PAIRS | _OF_AMX


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """The functions of one library; their arguments are those of the ``extern "C"`` blocks.

    ``lanes``: floats in a register, of which head sizes must be multiples. ``queued``: numbers of those that ``run``
    calls one after the other.
    """

    level: str
    lanes: int
    queued: Mapping[str, int]
    run: Callable[..., None]
    add: Callable[..., None]
    rms_norm: Callable[..., None]
    gated: Callable[..., None]
    rotary: Callable[..., None]
    low_rank: Callable[..., None]
    write_cache: Callable[..., None]
    attend: Callable[..., None]
    attend_chunks: Callable[..., None]
    to_panels: Callable[..., None]
    by_panels: Callable[..., None]
    to_tiles: Callable[..., None] | None = None
    by_tiles: Callable[..., None] | None = None
    to_integer_tiles: Callable[..., None] | None = None
    by_integer_tiles: Callable[..., None] | None = None


class KernelsError(Exception):
    """Why kernels cannot be used."""


def kernels() -> Kernels | None:
    """What this machine can use, loaded once; None: `describe` says why."""
    found = _best()
    return found if isinstance(found, Kernels) else None


def loaded() -> Kernels:
    """The same where they are known to be there."""
    found = kernels()
    assert found is not None, "ops of kernels are chosen only where there are kernels"
    return found


def describe() -> str:
    """A line for the log of a server."""
    found = _best()
    if isinstance(found, Kernels):
        return f"kernels: blockc's own, for {found.level}"
    return f"kernels: torch's own, which are slower: {found}"


def usable_levels() -> tuple[str, ...]:
    """The levels whose instructions this CPU has, the best first."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    have = {"generic", capability}
    if capability == "avx512":
        flags = _cpu_flags()
        have |= {"avx2"}
        have |= {"avx512_bf16"} & flags
        have |= {"amx"} if {"amx_tile", "amx_bf16", "avx512_bf16"} <= flags else set()
    return tuple(level for level in levels() if level in have)


@cache
def load(level: str) -> Kernels:
    """Raises `KernelsError`."""
    path = library_path(level)
    if not path.is_file():
        raise KernelsError("they were not built when blockc was installed; `python -m blockc_runtime.native` says why")
    try:
        _share_openmp()
        library = ctypes.CDLL(str(path))
        library.blockc_source.restype = ctypes.c_char_p
        if library.blockc_source().decode() != source_digest():
            raise KernelsError("they are of other sources; `python -m blockc_runtime.native` builds them again")
        signatures = _OF_ALL | (_OF_PAIRS if level in ("avx512_bf16", "amx") else {})
        signatures |= _OF_AMX if level == "amx" else {}
        functions = {name: getattr(library, f"blockc_{name}") for name in signatures}
        if level == "amx" and library.blockc_tiles_start() != 0:
            raise KernelsError("the system does not grant the use of AMX")
    except (OSError, AttributeError) as error:
        raise KernelsError(f"they cannot be loaded: {error}") from error
    for name, arguments in signatures.items():
        functions[name].argtypes, functions[name].restype = arguments, None
    lanes = 16 if level.startswith(("avx512", "amx")) else 8
    return Kernels(level=level, lanes=lanes, queued=_queued(library), **functions)


def _queued(library: ctypes.CDLL) -> dict[str, int]:
    library.blockc_queued.argtypes, library.blockc_queued.restype = (_L,), c_char_p
    names: list[str] = []
    while (name := library.blockc_queued(len(names))) is not None:
        names.append(name.decode())
    return {name: number for number, name in enumerate(names)}


@cache
def _best() -> Kernels | str:
    if os.environ.get(_SWITCH) == "0":
        return f"{_SWITCH}=0"
    usable = usable_levels()
    if not usable:
        return "this CPU lacks the instructions that they need"
    problems = []
    for level in usable:
        try:
            return load(level)
        except KernelsError as error:
            problems.append(str(error))
    return problems[0]


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def _share_openmp() -> None:
    """Let the kernels find the OpenMP library that torch has loaded: with two of them threads fight for cores."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if os.path.basename(path).startswith(("libgomp", "libiomp5", "libomp")):
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            return
