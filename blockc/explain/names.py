"""Names of blocks and their parameters, as the models that they came from call them.

In: a plan's path and blocks. Out: names. Where a path knows no names, those inside the block are used.
"""

from __future__ import annotations

from blockc.ir import Structure, parse_structure
from blockc.plan import ExecutionPlan, PathEntry


def structure_of(plan: ExecutionPlan, block: str) -> Structure:
    """The structure of a block of the plan."""
    return parse_structure(plan.structures[plan.blocks[block].structure])


def parameter_names(plan: ExecutionPlan, path: PathEntry, occurrence: int) -> dict[str, str]:
    """For each parameter of the block its full name in the model."""
    prefix = path.prefixes[occurrence] if path.prefixes else ""
    return {name: prefix + name for name in plan.blocks[path.blocks[occurrence]].tensors}


def occurrence_names(plan: ExecutionPlan, path: PathEntry) -> tuple[str, ...]:
    """A name for each occurrence: the module that holds all its linears, or else its parameters."""
    inside = {block: _inside(plan, block) for block in set(path.blocks)}
    prefixes = path.prefixes or ("",) * len(path.blocks)
    return tuple(
        (prefix + inside[block]).strip(".") or f"block {occurrence}"
        for occurrence, (prefix, block) in enumerate(zip(prefixes, path.blocks, strict=True))
    )


def _inside(plan: ExecutionPlan, block: str) -> str:
    """The name of a block without the prefix of its layer."""
    sites = structure_of(plan, block).sites
    modules = sites or tuple(name.rpartition(".")[0] for name in plan.blocks[block].tensors)
    if len(modules) == 1:
        return modules[0]
    common: list[str] = []
    for level in zip(*(module.split(".")[:-1] for module in modules), strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)
