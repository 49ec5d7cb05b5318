"""Segments: maximal runs of consecutive occurrences that the same paths pass.

Occurrences of two paths are one if the block, its position in the path, its first KV slot and the layout of the
path's cache are equal: a launch writes to one page pool a layer. Paths with other layouts (another depth, window or
cache dtype) still share the weights of equal blocks. Fine-tunes that only add sides share their base's path and never
cut a segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from blockc.graph import ModelPath
from blockc.ir import json_digest

_Key = tuple[int, str, int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """``paths`` are digests, sorted; ``first`` is the occurrence index, equal in all of them."""

    paths: tuple[str, ...]
    first: int
    count: int
    first_kv_layer: int
    ends_at: str  # "sharing": another set of paths goes on; "end": the chain ends


def find_segments(paths: Mapping[str, ModelPath]) -> tuple[Segment, ...]:
    """Segments in an order in which every path meets its own in order."""
    passing: dict[_Key, list[str]] = {}
    keys: dict[str, list[_Key]] = {}
    for digest in sorted(paths):
        keys[digest] = _keys(paths[digest])
        for key in keys[digest]:
            passing.setdefault(key, []).append(digest)
    segments: dict[tuple[_Key, tuple[str, ...]], Segment] = {}
    order: nx.DiGraph[tuple[_Key, tuple[str, ...]]] = nx.DiGraph()
    for digest, sequence in keys.items():
        previous = None
        for first, count in _runs([tuple(passing[key]) for key in sequence]):
            head = sequence[first]
            name = (head, tuple(passing[head]))
            segments[name] = Segment(
                paths=tuple(passing[head]),
                first=first,
                count=count,
                first_kv_layer=head[2],
                ends_at="end" if first + count == len(sequence) else "sharing",
            )
            order.add_node(name)
            if previous is not None:
                order.add_edge(previous, name)
            previous = name
        assert previous is not None, f"the path {digest} has no blocks"
    # Positions only grow along a path, so the order has no cycle.
    return tuple(segments[name] for name in nx.lexicographical_topological_sort(order))


def _keys(path: ModelPath) -> list[_Key]:
    shapes = [[kv.kv_heads, kv.head_dim, kv.window, kv.dtype] for kv in path.kv_layers]
    layout = json_digest("kv layout v1", shapes)
    return [
        (occurrence, block.digest, path.first_kv_layer[occurrence], layout)
        for occurrence, block in enumerate(path.blocks)
    ]


def _runs(sets: Sequence[tuple[str, ...]]) -> list[tuple[int, int]]:
    """(start, length) of maximal runs of equal neighbours."""
    starts = [index for index, item in enumerate(sets) if index == 0 or item != sets[index - 1]]
    return [(start, end - start) for start, end in zip(starts, [*starts[1:], len(sets)], strict=True)]
