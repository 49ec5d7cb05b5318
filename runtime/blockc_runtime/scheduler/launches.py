"""From rows to launches: each segment once, on the union of the rows that pass it.

In: the chain of each row. Out: the order of the rows, and the launches in the plan's order. Invariant: rows of a chain
are contiguous, and so are those of chains that share all segments; the number of launches depends on the segments
passed and not on how many chains pass them.
"""

from __future__ import annotations

from itertools import groupby

from blockc_runtime.limits import EngineLimits
from blockc_runtime.step import Launch

_KEPT = 256  # a steady decode batch repeats one composition; this many bounds the memory


class LaunchPlan:
    """Launches by the composition of a step, kept because consecutive steps rarely differ in it."""

    def __init__(self, limits: EngineLimits) -> None:
        self._chains = limits.chains
        self._kept: dict[tuple[int, ...], tuple[Launch, ...]] = {}
        order = sorted(
            range(len(limits.chains)),
            key=lambda chain: (limits.chains[chain].instance, limits.chains[chain].segments, chain),
        )
        self._rank = {chain: rank for rank, chain in enumerate(order)}

    def rank(self, chain: int) -> int:
        """Where rows of a chain stand in a step: chains that share leading segments stand together."""
        return self._rank[chain]

    def launches(self, chains: tuple[int, ...]) -> tuple[Launch, ...]:
        """Return the launches for rows of these chains, which stand in the order of `rank`."""
        kept = self._kept.get(chains)
        if kept is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            kept = self._kept[chains] = self._build(chains)
        return kept

    def _build(self, chains: tuple[int, ...]) -> tuple[Launch, ...]:
        passing: dict[tuple[int, int], list[int]] = {}
        first = 0
        for chain, run in groupby(chains):
            end = first + sum(1 for _ in run)
            limits = self._chains[chain]
            for segment in limits.segments:
                passing.setdefault((segment, limits.instance), []).extend(range(first, end))
            first = end
        return tuple(
            Launch(instance=instance, segment=segment, micro_batch=0, rows=tuple(passing[segment, instance]))
            for segment, instance in sorted(passing)
        )
