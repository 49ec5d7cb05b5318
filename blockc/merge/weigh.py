"""Merged by what placement says: hot fine-tunes that pay, and those that do no harm.

In: chains, and what a placement of them has of each goal. Out: those that are merged, and what was compared. Beside
shared weights a fine-tune's terms are read and computed for every token; merged they are not, and its weights are read
and kept wherever it runs. Which is less depends on what else runs there, so it is asked of placement itself: by rates
of devices, in cells of its own or with others, however that comes out best. Invariant: of devices, or what they cost,
what is merged has no more than what it was compared with, and no weights are made before that is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

from blockc.graph import Chain
from blockc.merge.fold import Folded, imagined

# Each is a placement of all models: those whose terms take most are asked for, and of more there is little to gain.
MOST_WEIGHED: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """What a placement has of each goal, as a plan's ``solver`` says it; no ``values``: there is none.

    ``unserved`` before all goals: requests a second that are left out (`overload = shed`). ``by_load``: load counts,
    not bytes alone.
    """

    goals: tuple[str, ...]
    values: tuple[float, ...]
    by_load: bool

    def is_less_than(self, other: Amounts) -> bool:
        """Of the first goal in which they differ."""
        return bool(self.values) and (not other.values or self.values < other.values)

    def is_no_harm_to(self, other: Amounts) -> bool:
        """No more devices, or cost, and no more of what comes before."""
        upto = 1 + next((n for n, goal in enumerate(self.goals) if goal in ("devices", "cost")), 0)
        return bool(self.values) and (not other.values or self.values[:upto] <= other.values[:upto])


Weigh = Callable[[Mapping[str, Chain]], Amounts]


def remembering(weigh: Weigh) -> Weigh:
    """The same, where the same chains are placed once."""
    known: dict[frozenset[tuple[str, str]], Amounts] = {}

    def asked(chains: Mapping[str, Chain]) -> Amounts:
        key = frozenset((name, chain.digest) for name, chain in chains.items())
        if key not in known:
            known[key] = weigh(chains)
        return known[key]

    return asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """What all models take with one of them ``beside`` shared weights, and with it ``merged``; empty: no room.

    ``rounding``: of those that were folded, see `Folded`.
    """

    goals: tuple[str, ...]
    beside: tuple[float, ...]
    merged: tuple[float, ...]
    rounding: float | None = None


def hottest(chains: Mapping[str, Chain], tokens: Mapping[str, Fraction]) -> list[str]:
    """Those whose terms take most of all devices, by bytes times tokens a second: as many as are weighed."""
    taken = {name: rate * sum(side.nbytes for side in chains[name].sides) for name, rate in tokens.items()}
    return sorted((name for name in taken if taken[name]), key=lambda name: (-taken[name], name))[:MOST_WEIGHED]


def weigh_each(
    chains: Mapping[str, Chain], names: Iterable[str], *, weigh: Weigh, make: Callable[[Chain], Folded]
) -> tuple[dict[str, Folded], dict[str, Weighed]]:
    """Which of ``names`` are merged, tried one after the other, and what was compared for each that was tried."""
    found, merged, weighed = dict(chains), dict[str, Folded](), dict[str, Weighed]()
    now = weigh(found)
    for name in names:
        after = weigh(found | {name: imagined(found[name])})
        said = Weighed(goals=now.goals, beside=now.values, merged=after.values)
        if after.is_less_than(now):
            folded = make(found[name])
            said = replace(said, rounding=folded.rounding)
            if folded.is_same and (after := weigh(found | {name: folded.chain})).is_less_than(now):
                said = replace(said, merged=after.values)
                found[name], merged[name], now = folded.chain, folded, after
        weighed[name] = said
    return merged, weighed
