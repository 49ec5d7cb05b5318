"""Blocks as text: what each is made of, which chains pass it, and which tensors it shares with others.

In: the unified graph of the compiler, or a plan. Out: text. Invariant: the same for a graph
and the plan made of it; a tensor that several blocks bind names all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blockc.ir import TensorRef
from blockc.plan import ExecutionPlan, chains_through
from blockc.render.units import counted, format_bytes, printable, short

if TYPE_CHECKING:
    from blockc.unify import UnifiedGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockView:
    """A block as the graph and the plan both know it. ``chains``: indices of those that pass it."""

    digest: str
    structure: str
    prelude: str | None
    contexts: tuple[int, ...]
    binds: Mapping[str, float | int | None]
    tensors: Mapping[str, TensorRef]
    chains: tuple[int, ...]


def graph_blocks(graph: UnifiedGraph) -> list[BlockView]:
    """The blocks of the compiler's graph."""
    passing: dict[str, list[int]] = {digest: [] for digest in graph.blocks}
    for index, chain in enumerate(graph.chains):
        prelude = chain.path.prelude
        for digest in {block.digest for block in chain.path.blocks} | ({prelude.digest} if prelude else set()):
            passing[digest].append(index)
    return [
        BlockView(
            digest=digest,
            structure=block.structure_digest,
            prelude=block.prelude,
            contexts=block.contexts,
            binds=block.binds,
            tensors=block.tensors,
            chains=tuple(passing[digest]),
        )
        for digest, block in graph.blocks.items()
    ]


def plan_blocks(plan: ExecutionPlan) -> list[BlockView]:
    """The blocks of a plan."""
    passing = chains_through(plan)
    return [
        BlockView(
            digest=digest,
            structure=block.structure,
            prelude=block.prelude,
            contexts=block.contexts,
            binds=block.binds,
            tensors=block.tensors,
            chains=passing[digest],
        )
        for digest, block in plan.blocks.items()
    ]


def render_blocks(blocks: Sequence[BlockView]) -> str:
    """All blocks, each once."""
    binders: dict[str, list[tuple[str, str]]] = {}
    for block in blocks:
        for param, tensor in sorted(block.tensors.items()):
            binders.setdefault(tensor.digest, []).append((block.digest, param))
    distinct = {tensor for block in blocks for tensor in block.tensors.values()}
    lines = [
        f"GRAPH  ({counted(len(blocks), 'block')}, {counted(len(distinct), 'tensor')} of "
        f"{format_bytes(sum(tensor.nbytes for tensor in distinct))})"
    ]
    for block in blocks:
        lines += ["", *_block(block, binders)]
    return "\n".join(lines) + "\n"


def _block(block: BlockView, binders: Mapping[str, Sequence[tuple[str, str]]]) -> Iterator[str]:
    nbytes = sum(tensor.nbytes for tensor in set(block.tensors.values()))
    chains = ", ".join(map(str, block.chains))
    yield f"block {short(block.digest)}: structure {short(block.structure)}, {format_bytes(nbytes)}, chains {chains}"
    if block.prelude is not None:
        outputs = ", ".join(map(str, block.contexts))
        yield f"  prelude {short(block.prelude)}, outputs {outputs}"
    for name, value in sorted(block.binds.items()):
        yield f"  bind {printable(name)} = {'none' if value is None else value}"
    for param, tensor in sorted(block.tensors.items()):
        others = [
            f"{printable(name)} of {short(digest)}"
            for digest, name in binders[tensor.digest]
            if (digest, name) != (block.digest, param)
        ]
        also = f", also {', '.join(others)}" if others else ""
        shape = ",".join(map(str, tensor.shape))
        yield f"  param {printable(param)} = {short(tensor.digest)} {tensor.dtype}[{shape}]{also}"
