"""What segments and chains of a graph have to read and to compute, before there is a plan of it.

In: a unified graph and the bytes of each chain's sides. Out: `PlanWork`, as `plan_work` counts it of the plan that the
graph becomes: a test compares both.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockc.cost.work import BlockWork, PlanWork, chain_work, segment_work
from blockc.ir.infer import value_types
from blockc.unify import UnifiedGraph


def graph_work(graph: UnifiedGraph, *, side_bytes: Sequence[int]) -> PlanWork:
    """Count a graph's work. Indices are the graph's, which are those of its plan."""
    structures = {block.structure_digest: block.structure for block in graph.blocks.values()}
    types = {digest: value_types(structure) for digest, structure in structures.items()}
    blocks = {
        digest: BlockWork.of(block.tensors, block.structure, types[block.structure_digest])
        for digest, block in graph.blocks.items()
    }
    return PlanWork(
        segments=tuple(
            segment_work(
                blocks[block.digest]
                for block in graph.paths[segment.paths[0]].blocks[segment.first : segment.first + segment.count]
            )
            for segment in graph.segments
        ),
        chains=tuple(
            chain_work(
                graph.segments_of[index],
                (blocks[block.digest] for block in chain.path.blocks),
                chain.path.kv_layers,
                side_bytes=side_bytes[index],
                dtype=chain.path.dtype,
            )
            for index, chain in enumerate(graph.chains)
        ),
    )
