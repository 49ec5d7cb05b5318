"""What tells two blocks apart, by parameter and by line of their structures, and why equal blocks run apart.

In: occurrences of blocks in paths of a plan. Out: plain data. Invariant: blocks of equal digests have no difference,
all others have one.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from blockc.explain.names import parameter_names
from blockc.ir import differing_parts
from blockc.plan import ExecutionPlan, PathEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One part that differs. ``nbytes``: of the tensor, 0 for other parts; ``detail``: the two values, if short."""

    part: str  # "tensor", "bind", "structure", "prelude", "contexts"
    name: str
    nbytes: int
    detail: tuple[str, ...]


def block_differences(
    plan: ExecutionPlan, own: tuple[PathEntry, int], other: tuple[PathEntry, int]
) -> tuple[Difference, ...]:
    """How the block at an occurrence of one path differs from the block at an occurrence of another."""
    path, occurrence = own
    mine = plan.blocks[path.blocks[occurrence]]
    theirs = plan.blocks[other[0].blocks[other[1]]]
    names = parameter_names(plan, path, occurrence)
    found = []
    for part in differing_parts(mine.parts, theirs.parts):
        kind, _, name = part.partition(":")
        detail: tuple[str, ...] = ()
        nbytes = 0
        if kind == "tensor":
            nbytes, name = mine.tensors[name].nbytes, names[name]
        elif kind == "bind":
            detail = (_scalar(mine.binds[name]), _scalar(theirs.binds[name]))
        elif kind == "structure":
            detail = _changed_lines(plan.structures[mine.structure], plan.structures[theirs.structure])
        elif kind == "prelude" and mine.prelude is not None and theirs.prelude is not None:
            detail = differing_parts(plan.blocks[mine.prelude].parts, plan.blocks[theirs.prelude].parts)
        found.append(Difference(part=kind, name=name, nbytes=nbytes, detail=detail))
    return tuple(found)


def apart_because(plan: ExecutionPlan, path: PathEntry, other: PathEntry) -> str | None:
    """Why equal blocks of two paths are never launched together; None if nothing keeps them apart."""
    if len(path.kv_layers) != len(other.kv_layers):
        return f"their depths differ: {len(path.kv_layers)} and {len(other.kv_layers)} KV layers"
    for index, (mine, theirs) in enumerate(zip(path.kv_layers, other.kv_layers, strict=True)):
        for what in ("window", "dtype", "kv_heads", "head_dim"):
            one, two = getattr(mine, what), getattr(theirs, what)
            if one != two:
                return f"their KV layouts differ: {what} of layer {index} is {_scalar(one)} and {_scalar(two)}"
    return None


def _scalar(value: float | int | str | None) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _changed_lines(mine: str, theirs: str) -> tuple[str, ...]:
    lines = difflib.unified_diff(theirs.splitlines(), mine.splitlines(), lineterm="", n=0)
    return tuple(line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---"))
