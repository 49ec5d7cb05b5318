"""Which tensors of a plan are in memory by turns.

In: a plan. Out: for each segment that takes turns the digests of its own tensors; all others are always in memory.
"""

from __future__ import annotations

from blockc.ir.turns import own_tensors
from blockc.plan.model import ExecutionPlan


def turning_tensors(plan: ExecutionPlan) -> dict[int, frozenset[str]]:
    """By segment; empty where none takes turns."""
    turns = sorted({turn.segment for instance in plan.instances for turn in instance.turns})
    if not turns:
        return {}
    preludes = sorted({block.prelude for block in plan.blocks.values() if block.prelude is not None})
    own = own_tensors(
        [
            [ref for digest in segment_blocks(plan, number) for ref in plan.blocks[digest].tensors.values()]
            for number in range(len(plan.segments))
        ],
        [ref for digest in preludes for ref in plan.blocks[digest].tensors.values()],
    )
    return {segment: own[segment] for segment in turns}


def segment_blocks(plan: ExecutionPlan, segment: int) -> tuple[str, ...]:
    """The blocks of a segment, in order."""
    entry = plan.segments[segment]
    return plan.paths[entry.path].blocks[entry.first : entry.first + entry.count]
