"""Segments: maximal runs of consecutive occurrences that the same paths pass, and why each ends where it ends.

Occurrences of two paths are one if the block, its position in the path, its first KV slot and the layout of the
path's cache are equal: a launch writes to one page pool a layer. Paths with other layouts (another depth, window or
cache dtype) still share the weights of equal blocks. Fine-tunes that only add sides share their base's path and never
cut a segment.

Segments are as few as can be. One launch serves all rows of all its paths, so that no segment may hold two
occurrences of which a path passes one only; and every cut here has two witnesses for exactly that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from blockc.graph import ModelPath
from blockc.ir import differing_parts, json_digest

_Key = tuple[int, str, int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Why a segment ends. ``witnesses`` are two paths; ``differs`` names the parts that tell their blocks apart.

    ``part``: both pass the segment, and their next blocks differ (``("end",)``: the second path ends). ``join``: all
    go on together and the second comes in after another last block. ``end``: the paths end, without witnesses.
    """

    kind: Literal["part", "join", "end"]
    witnesses: tuple[str, ...]
    differs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} ({', '.join(self.differs)})" if self.differs else self.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """``paths`` are digests, sorted; ``first`` is the occurrence index, equal in all of them."""

    paths: tuple[str, ...]
    first: int
    count: int
    first_kv_layer: int
    cut: Cut


def find_segments(paths: Mapping[str, ModelPath]) -> tuple[Segment, ...]:
    """Segments in an order in which every path meets its own in order."""
    keys = {digest: _keys(paths[digest]) for digest in sorted(paths)}
    passing = _passing(keys)
    segments: dict[_Key, Segment] = {}
    for digest, sequence in keys.items():
        assert sequence, f"the path {digest} has no blocks"
        for first, count in _runs([passing[key] for key in sequence]):
            head = sequence[first]
            if head not in segments:
                segments[head] = Segment(
                    paths=passing[head],
                    first=first,
                    count=count,
                    first_kv_layer=head[2],
                    cut=_cut(paths, keys, passing, passing[head], first + count),
                )
    # Positions only grow along a path.
    return tuple(segments[head] for head in sorted(segments))


def _keys(path: ModelPath) -> list[_Key]:
    shapes = [[kv.kv_heads, kv.head_dim, kv.window, kv.dtype] for kv in path.kv_layers]
    layout = json_digest("kv layout v1", shapes)
    return [
        (occurrence, block.digest, path.first_kv_layer[occurrence], layout)
        for occurrence, block in enumerate(path.blocks)
    ]


def _passing(keys: Mapping[str, Sequence[_Key]]) -> dict[_Key, tuple[str, ...]]:
    """The paths through each occurrence. Equal sets are one object: with many paths, comparing them takes the time."""
    found: dict[_Key, list[str]] = {}
    for digest, sequence in keys.items():
        for key in sequence:
            found.setdefault(key, []).append(digest)
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    return {key: known.setdefault(item, item) for key, item in ((key, tuple(found[key])) for key in found)}


def _runs(sets: Sequence[tuple[str, ...]]) -> list[tuple[int, int]]:
    """(start, length) of maximal runs of equal neighbours."""
    starts = [index for index, item in enumerate(sets) if index == 0 or item is not sets[index - 1]]
    return [(start, end - start) for start, end in zip(starts, [*starts[1:], len(sets)], strict=True)]


def _cut(
    paths: Mapping[str, ModelPath],
    keys: Mapping[str, Sequence[_Key]],
    passing: Mapping[_Key, tuple[str, ...]],
    own: tuple[str, ...],
    end: int,
) -> Cut:
    """Why the segment of the paths ``own`` ends before occurrence ``end``."""
    nexts = {digest: keys[digest][end] if end < len(keys[digest]) else None for digest in own}
    if not any(nexts.values()):
        return Cut(kind="end", witnesses=(), differs=())
    one = next(digest for digest in own if nexts[digest] is not None)
    following = nexts[one]
    assert following is not None, "a path that goes on was chosen"
    for other in own:
        if nexts[other] != following:
            differs = ("end",) if nexts[other] is None else _differs(paths, one, other, end)
            return Cut(kind="part", witnesses=(one, other), differs=differs)
    joining = set(passing[following]).difference(own)
    other = min(joining)
    return Cut(kind="join", witnesses=(one, other), differs=_differs(paths, one, other, end - 1))


def _differs(paths: Mapping[str, ModelPath], one: str, other: str, occurrence: int) -> tuple[str, ...]:
    blocks = paths[one].blocks[occurrence], paths[other].blocks[occurrence]
    differs = differing_parts(blocks[0].parts, blocks[1].parts)
    assert differs, "paths of one cache layout part and join at blocks that differ"
    return differs
