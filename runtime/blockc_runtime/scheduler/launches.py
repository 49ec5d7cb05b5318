"""From rows to launches: each segment once, on the union of the rows that pass it.

In: the chain of each row, and the run of its blocks that it passes. Out: the order of the rows, and the launches in the
plan's order. Invariant: rows of a chain are contiguous, and so are those of chains that share all segments; the number
of launches depends on the segments passed, and on where rows begin and stop inside them, and not on how many chains
pass them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from blockc_runtime.limits import EngineLimits
from blockc_runtime.step import Launch

_KEPT = 256  # a steady decode batch repeats one composition; this many bounds the memory


# Chain and blocks of a row: first and stop, or None for all of them.
Passage = tuple[int, tuple[int, int] | None]


class LaunchPlan:
    """Launches by the composition of a step, kept because consecutive steps rarely differ in it."""

    def __init__(self, limits: EngineLimits) -> None:
        self._chains = limits.chains
        self._kept: dict[tuple[Passage, ...], tuple[Launch, ...]] = {}
        order = sorted(
            range(len(limits.chains)),
            key=lambda chain: (limits.chains[chain].instance, limits.chains[chain].segments, chain),
        )
        self._sizes = {
            segment: count
            for chain in limits.chains
            for segment, count in zip(chain.segments, chain.blocks, strict=False)
        }
        self._rank = {chain: rank for rank, chain in enumerate(order)}

    def rank(self, chain: int) -> int:
        """Where rows of a chain stand in a step: chains that share leading segments stand together."""
        return self._rank[chain]

    def launches(self, rows: tuple[Passage, ...]) -> tuple[Launch, ...]:
        """Return the launches for these rows, which stand in the order of `rank`."""
        kept = self._kept.get(rows)
        if kept is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            kept = self._kept[rows] = self._build(rows)
        return kept

    def _build(self, rows: tuple[Passage, ...]) -> tuple[Launch, ...]:
        passing: dict[tuple[int, int], list[tuple[int, tuple[int, int] | None]]] = {}
        for index, (chain, blocks) in enumerate(rows):
            limits = self._chains[chain]
            for place, segment in enumerate(limits.segments):
                own = None if blocks is None else _inside(blocks, limits.blocks, place)
                if own is None or own[0] < own[1]:
                    passing.setdefault((segment, limits.instance), []).append((index, own))
        return tuple(
            Launch(instance=instance, segment=segment, micro_batch=0, rows=members, blocks=blocks)
            for segment, instance in sorted(passing)
            for blocks, members in _runs(passing[segment, instance], self._sizes.get(segment, 0))
        )


def _inside(blocks: tuple[int, int], counts: tuple[int, ...], place: int) -> tuple[int, int] | None:
    """What of a run of a chain's blocks lies in its segment at ``place``, counted from there; None: all of that."""
    first = sum(counts[:place])
    own = max(0, blocks[0] - first), min(counts[place], blocks[1] - first)
    return None if own == (0, counts[place]) else own


def _runs(
    passing: Sequence[tuple[int, tuple[int, int] | None]], size: int
) -> Iterator[tuple[tuple[int, int] | None, tuple[int, ...]]]:
    """The runs of a segment's blocks that the same rows pass, in order; None: the whole segment is one."""
    cuts = {cut for _, own in passing if own is not None for cut in own}
    if not cuts:
        yield None, tuple(index for index, _ in passing)
        return
    for first, stop in pairwise(sorted(cuts | {0, size})):
        members = tuple(index for index, own in passing if own is None or (own[0] <= first and stop <= own[1]))
        if members:
            yield (first, stop), members
