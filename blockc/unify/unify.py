"""Merge equal blocks of several models into one graph.

In: the chain of every app's model. Out: one graph in which every block stands once, the segments that chains travel
through, and the KV groups and domains that say what may be shared. Invariant: running a chain through its segments
equals running its model alone, and no two neighbouring segments could be one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from blockc.graph import Block, Chain, KvLayerShape, ModelPath
from blockc.plan.laminar import find_crossing
from blockc.unify.domains import DomainFinder
from blockc.unify.segments import Segment, find_segments


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGroup:
    """Layers ``first .. first + count - 1``, alike in shape, inside which no two chains that may share diverge."""

    first: int
    count: int
    shape: KvLayerShape


@dataclass(frozen=True, slots=True, kw_only=True)
class UnifiedGraph:
    """``chain_of`` maps models (names of bases and fine-tunes) to chains; equal chains are one.

    ``crossing``: two segments whose sets of chains overlap, neither inside the other; None: sharing is laminar.
    """

    blocks: Mapping[str, Block]
    paths: Mapping[str, ModelPath]
    chains: tuple[Chain, ...]
    chain_of: Mapping[str, int]
    segments: tuple[Segment, ...]
    segments_of: tuple[tuple[int, ...], ...]  # per chain, in order
    groups: tuple[KvGroup, ...]
    groups_of: tuple[tuple[int, ...], ...]  # per chain, in layer order
    domains: tuple[tuple[str, ...], ...]  # per chain, per layer
    crossing: tuple[int, int] | None


def unify(models: Mapping[str, Chain], *, together: Sequence[frozenset[str]]) -> UnifiedGraph:
    """``together``: sets of models whose apps share an isolation group, so that sharing between them is allowed."""
    by_digest = {chain.digest: chain for chain in models.values()}
    digests = sorted(by_digest)
    chains = tuple(by_digest[digest] for digest in digests)
    number = {digest: index for index, digest in enumerate(digests)}
    chain_of = {name: number[models[name].digest] for name in sorted(models)}
    paths = {chain.path.digest: chain.path for chain in chains}
    blocks = {block.digest: block for path in paths.values() for block in path.blocks}
    blocks |= {path.prelude.digest: path.prelude for path in paths.values() if path.prelude is not None}
    segments = find_segments(paths)
    finder = DomainFinder()
    domains = tuple(finder.domains(chain) for chain in chains)
    allowed = [frozenset(chain_of[name] for name in names) for names in together]
    groups, groups_of = _kv_groups(chains, domains, allowed)
    graph = UnifiedGraph(
        blocks={digest: blocks[digest] for digest in sorted(blocks)},
        paths={digest: paths[digest] for digest in sorted(paths)},
        chains=chains,
        chain_of=chain_of,
        segments=segments,
        segments_of=_segments_of(chains, segments),
        groups=groups,
        groups_of=groups_of,
        domains=domains,
        crossing=find_crossing([segment.paths for segment in segments]),
    )
    _verify(graph)
    return graph


def _segments_of(chains: Sequence[Chain], segments: Sequence[Segment]) -> tuple[tuple[int, ...], ...]:
    passed: dict[str, list[int]] = {}
    for index, segment in enumerate(segments):
        for path in segment.paths:
            passed.setdefault(path, []).append(index)
    own = {path: tuple(indices) for path, indices in passed.items()}
    return tuple(own[chain.path.digest] for chain in chains)


def _kv_groups(
    chains: Sequence[Chain], domains: Sequence[tuple[str, ...]], allowed: Sequence[frozenset[int]]
) -> tuple[tuple[KvGroup, ...], tuple[tuple[int, ...], ...]]:
    """Groups per distinct sequence of layer shapes; chains with the same sequence use the same groups."""
    layouts: dict[tuple[KvLayerShape, ...], list[int]] = {}
    for index, chain in enumerate(chains):
        layouts.setdefault(chain.path.kv_layers, []).append(index)
    groups: list[KvGroup] = []
    groups_of: dict[int, tuple[int, ...]] = {}
    for layout, members in layouts.items():
        cuts = {0, len(layout)}
        cuts |= {layer for layer in range(1, len(layout)) if layout[layer] != layout[layer - 1]}
        for sharing in allowed:
            cuts |= _divergences([domains[index] for index in members if index in sharing])
        ordered = sorted(cuts)
        own = tuple(range(len(groups), len(groups) + len(ordered) - 1))
        for first, end in pairwise(ordered):
            groups.append(KvGroup(first=first, count=end - first, shape=layout[first]))
        groups_of |= dict.fromkeys(members, own)
    return tuple(groups), tuple(groups_of[index] for index in range(len(chains)))


def _divergences(domains: Sequence[tuple[str, ...]]) -> set[int]:
    """Layers at which two of the sequences differ for the first time."""
    found: set[int] = set()
    if len(domains) < 2:
        return found
    for layer in range(1, len(domains[0])):
        following: dict[str, str] = {}
        for sequence in domains:
            if following.setdefault(sequence[layer - 1], sequence[layer]) != sequence[layer]:
                found.add(layer)
    return found


def _verify(graph: UnifiedGraph) -> None:
    passed = {chain.path.digest: own for chain, own in zip(graph.chains, graph.segments_of, strict=True)}
    blocks = {digest: [block.digest for block in path.blocks] for digest, path in graph.paths.items()}
    for path, own in passed.items():
        covered = 0
        for index in own:
            segment = graph.segments[index]
            end = segment.first + segment.count
            assert segment.first == covered, "segments do not follow one another along a chain"
            same = blocks[path][covered:end] == blocks[segment.paths[0]][covered:end]
            assert same, "a segment holds another block"
            covered = end
        assert covered == len(blocks[path]), "segments do not cover a chain"
        for before, after in pairwise(own):
            assert graph.segments[before].paths != graph.segments[after].paths, "two segments could be one"
