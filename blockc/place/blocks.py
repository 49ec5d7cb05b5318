"""Blocks of paths one by one, as stages of a pipeline take them.

In: a graph, and the bytes of a block's activations. Out: the blocks of each path. Invariant: what a segment keeps is
what its blocks keep.
"""

from __future__ import annotations

from collections.abc import Callable

from blockc.cost.work import AttentionWork, BlockWork, chain_work, state_bytes
from blockc.graph import Block, ModelPath
from blockc.ir.infer import value_types
from blockc.ir.layout import block_tensors
from blockc.place.problem import PlaceBlock
from blockc.unify import UnifiedGraph


def path_blocks(
    graph: UnifiedGraph, activation: Callable[[ModelPath, Block], int], kernel_bytes: int, *, works: bool
) -> dict[str, tuple[PlaceBlock, ...]]:
    """By path. ``works``: count what each reads and computes, too."""
    group_of = {
        (chain.path.digest, layer): group
        for chain, groups in zip(graph.chains, graph.groups_of, strict=True)
        for group in groups
        for layer in range(graph.groups[group].first, graph.groups[group].first + graph.groups[group].count)
    }
    known: dict[str, BlockWork] = {}
    found: dict[str, tuple[PlaceBlock, ...]] = {}
    for digest, path in graph.paths.items():
        blocks = []
        prelude = frozenset() if path.prelude is None else block_tensors(path.prelude.structure, path.prelude.tensors)
        for block, first in zip(path.blocks, path.first_kv_layer, strict=True):
            count = block.structure.attention_count
            work = None
            if works:
                if block.digest not in known:
                    known[block.digest] = BlockWork.of(block.tensors, block.structure, value_types(block.structure))
                work = known[block.digest]
            blocks.append(
                PlaceBlock(
                    digest=block.digest,
                    tensors=block_tensors(block.structure, block.tensors) | prelude,
                    activation_bytes=kernel_bytes + activation(path, block),
                    groups=tuple(group_of[digest, layer] for layer in range(first, first + count)),
                    state_bytes=state_bytes(block.structure),
                    work=work,
                    attention=() if work is None else _attention(path, work, first, count),
                )
            )
        found[digest] = tuple(blocks)
    return found


def _attention(path: ModelPath, work: BlockWork, first: int, count: int) -> tuple[AttentionWork, ...]:
    layers = path.kv_layers[first : first + count]
    return chain_work((), [work], layers, side_bytes=0, dtype=path.dtype).attention
