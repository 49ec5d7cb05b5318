"""Segments and KV groups as text: which blocks are launched together, for whom, and where pages may be shared.

In: the compiler's graph, or a plan. Out: text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blockc.plan import ExecutionPlan
from blockc.render.units import counted, format_bytes, printable, short

if TYPE_CHECKING:
    from blockc.unify import UnifiedGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentView:
    """``blocks`` are digests, in order; ``nbytes``: of their distinct tensors; ``cut``: why it ends."""

    blocks: tuple[str, ...]
    first: int
    first_kv_layer: int
    chains: tuple[int, ...]
    cut: str
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """A KV group. ``domains``: for each chain that uses it, the domain of its last layer."""

    first: int
    layers: int
    shape: str
    domains: tuple[tuple[int, str], ...]


def graph_segments(graph: UnifiedGraph) -> str:
    """Of the compiler's graph; chains are called by number, and named with their models."""
    segments = []
    for index, segment in enumerate(graph.segments):
        blocks = graph.paths[segment.paths[0]].blocks[segment.first : segment.first + segment.count]
        tensors = {tensor for block in blocks for tensor in block.tensors.values()}
        segments.append(
            SegmentView(
                blocks=tuple(block.digest for block in blocks),
                first=segment.first,
                first_kv_layer=segment.first_kv_layer,
                chains=tuple(chain for chain, own in enumerate(graph.segments_of) if index in own),
                cut=str(segment.cut),
                nbytes=sum(tensor.nbytes for tensor in tensors),
            )
        )
    groups = [
        GroupView(
            first=group.first,
            layers=group.count,
            shape=_shape(group.shape.kv_heads, group.shape.head_dim, group.shape.dtype, group.shape.window),
            domains=tuple(
                (chain, graph.domains[chain][group.first + group.count - 1])
                for chain, own in enumerate(graph.groups_of)
                if index in own
            ),
        )
        for index, group in enumerate(graph.groups)
    ]
    names = [[name for name, own in graph.chain_of.items() if own == chain] for chain in range(len(graph.chains))]
    return render_segments([", ".join(own) for own in names], segments, groups)


def plan_segments(plan: ExecutionPlan) -> str:
    """Of a plan; chains are named with their apps."""
    segments = []
    for segment in plan.segments:
        blocks = plan.paths[segment.path].blocks[segment.first : segment.first + segment.count]
        tensors = {tensor for block in blocks for tensor in plan.blocks[block].tensors.values()}
        segments.append(
            SegmentView(
                blocks=blocks,
                first=segment.first,
                first_kv_layer=segment.first_kv_layer,
                chains=segment.chains,
                cut=str(segment.cut),
                nbytes=sum(tensor.nbytes for tensor in tensors),
            )
        )
    groups = [
        GroupView(
            first=group.first_layer,
            layers=group.layers,
            shape=_shape(group.kv_heads, group.head_dim, group.dtype, group.window),
            domains=tuple(
                (index, entry.domain)
                for index, chain in enumerate(plan.chains)
                for entry in chain.kv
                if entry.group == number
            ),
        )
        for number, group in enumerate(plan.kv_groups)
    ]
    names = [[app.address for app in plan.apps if app.chain == chain] for chain in range(len(plan.chains))]
    return render_segments([", ".join(own) for own in names], segments, groups)


def render_segments(names: Sequence[str], segments: Sequence[SegmentView], groups: Sequence[GroupView]) -> str:
    """``names``: who uses each chain."""
    lines = [f"CHAINS  ({counted(len(names), 'chain')})"]
    lines += [f"  {index:>3}  {printable(name) or 'no app'}" for index, name in enumerate(names)]
    lines += ["", f"SEGMENTS  ({counted(len(segments), 'segment')})"]
    for index, segment in enumerate(segments):
        lines += ["", *_segment(index, segment)]
    lines += ["", f"KV GROUPS  ({counted(len(groups), 'group')})"]
    for index, group in enumerate(groups):
        lines += ["", *_group(index, group)]
    return "\n".join(lines) + "\n"


def _segment(index: int, segment: SegmentView) -> Iterator[str]:
    yield (
        f"segment {index}: {counted(len(segment.blocks), 'block')}, {format_bytes(segment.nbytes)}, "
        f"ends: {printable(segment.cut)}"
    )
    yield f"  chains {', '.join(map(str, segment.chains))}"
    yield f"  first KV layer {segment.first_kv_layer}"
    for offset, block in enumerate(segment.blocks):
        yield f"  {segment.first + offset:>3}  block {short(block)}"


def _group(index: int, group: GroupView) -> Iterator[str]:
    last = group.first + group.layers - 1
    layers = f"layer {group.first}" if group.layers == 1 else f"layers {group.first}-{last}"
    yield f"group {index}: {layers}, {group.shape}"
    for chain, domain in group.domains:
        yield f"  chain {chain}: domain {short(domain)}"


def _shape(kv_heads: int, head_dim: int, dtype: str, window: int | None) -> str:
    return f"{counted(kv_heads, 'head')} of {head_dim} {dtype}{'' if window is None else f', window {window}'}"
