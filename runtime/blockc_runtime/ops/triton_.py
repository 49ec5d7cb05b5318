"""Whether Triton's kernels can be used, and what a server says of it."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

# Tests and benchmarks compare both ways.
_SWITCH = "BLOCKC_TRITON"


@cache
def problem() -> str | None:
    """Why torch's own functions are used in place of kernels; None: they are not."""
    if os.environ.get(_SWITCH) == "0":
        return f"{_SWITCH}=0"
    if find_spec("triton") is None:
        return "Triton is not installed, which torch for CUDA brings on Linux"
    return None


def describe() -> str:
    """A line for the log of a server."""
    why = problem()
    return (
        "kernels: blockc's own, by Triton (attention, prompts' too; fine-tunes)"
        if why is None
        else f"kernels: torch's own, which are slower: {why}"
    )
