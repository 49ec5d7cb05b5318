"""Packings made better by taking some cells apart and filling their units in again, a fixed number of times.

In: a packing that holds. Out: one that holds, of no more devices (ruin and recreate: Schrimpf et al., J. Comput.
Phys. 159, 2000). What a round makes is kept if it uses fewer devices, or as many and less of them, or is more uneven.
A cell is as full as its time or, a little less, its memory is.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Final

from blockc.place.traffic.goals import PEAKS, amount, weights
from blockc.place.traffic.greedy import Filler, OpenCell, cheapen, choices_of_kinds, load_of, reopened
from blockc.place.traffic.packing import PackedCell, Packing

_SEED: Final = 7
# Cells that are taken apart at once.
_FEWEST, _MOST = 2, 6
# How much unevenness counts beside what is taken: sharing saves, and nearly empty cells can be closed. Of 0 to 1 that
# were tried on the fleets of `benchmarks/placement.py`, 0.6 and 1 take one to three devices more.
_UNEVEN: Final = 0.4
# How much memory counts beside time, of which whichever a cell has less left is what it is full of.
_HELD: Final = 0.8
# Units and cells that all rounds together look at.
_EFFORT: Final = 100_000_000
_MOST_ROUNDS: Final = 12_000
LEAST_ROUNDS: Final = 500


def rounds_of(packing: Packing, cells: Sequence[PackedCell]) -> int:
    """How many rounds a packing is worth: fewer for large ones, of which each takes longer."""
    size = len(cells) * (_MOST * sum(group.units for group in packing.groups) // max(1, len(cells)) + 10)
    return max(LEAST_ROUNDS, min(_MOST_ROUNDS, _EFFORT // max(1, 5 * size)))


def improve(packing: Packing, cells: Sequence[PackedCell], *, rounds: int, least: int) -> tuple[PackedCell, ...]:
    """``rounds``: how many; ``least``: what is known to be spent at least, with which it stops."""
    choices = choices_of_kinds(packing)
    filler = Filler(packing, choices[0])
    first = weights(packing)
    for packed in cells:
        reopened(filler, packed)
    noise = random.Random(_SEED)  # noqa: S311 - of cells, not of secrets
    load = [load_of(packing, group) for group in range(len(packing.groups))]
    best = _score(filler, first)
    for _ in range(rounds):
        if len(choices) > 1:
            filler.best_kinds = noise.choice(choices)
        if -best[0] <= least or len(filler.cells) < 2:
            break
        kept_cells, kept_free = filler.cells, filler.free
        removed = _chosen(filler, noise)
        filler.cells = [cell for cell in kept_cells if cell not in removed]
        filler.free = [list(free) for free in kept_free]
        for cell in removed:
            filler.free[cell.block] = sorted([*filler.free[cell.block], *cell.devices])
        score = _score(filler, first) if _refill(filler, removed, first, load, noise) else None
        if score is not None and score >= best:
            best = score
        else:
            filler.cells, filler.free = kept_cells, kept_free
    cheapen(filler)
    return tuple(sorted((cell.packed() for cell in filler.cells), key=lambda cell: cell.devices))


def _score(filler: Filler, first: Sequence[int]) -> tuple[float, ...]:
    """Less spent (``first``: by kind), then less of what else adds up and comes before the peak; higher is better.

    Then cells that are less full, more unevenly.
    """
    packing = filler.packing
    kinds = packing.kinds
    score = 0.0
    for cell in filler.cells:
        kind = kinds[cell.kind]
        held = (cell.nbytes + cell.activation) / kind.offered_bytes
        full = max((cell.parts + cell.fixed) / cell.limit, _HELD * held)
        score += kind.width * full * (_UNEVEN * full - 1)
    spent = sum(first[cell.kind] for cell in filler.cells)
    before = list(itertools.takewhile(lambda goal: goal not in PEAKS, packing.goals))[1:]
    more = [amount(packing, goal, [cell.packed() for cell in filler.cells]) for goal in before]
    return (-spent, *(-value for value in more), round(score, 6))


def _chosen(filler: Filler, noise: random.Random) -> list[OpenCell]:
    """Cells that have items in common with one drawn by chance, and some others."""
    cells = filler.cells
    first = noise.choice(cells)
    count = min(len(cells), noise.randint(_FEWEST, _MOST))
    alike = [cell for cell in cells if cell is not first and not cell.resident.isdisjoint(first.resident)]
    pool = alike if noise.random() < 0.6 and len(alike) >= count - 1 else [cell for cell in cells if cell is not first]
    return [first, *noise.sample(pool, min(count - 1, len(pool)))]


def _refill(
    filler: Filler, removed: Sequence[OpenCell], first: Sequence[int], load: Sequence[float], noise: random.Random
) -> bool:
    """All their units, the large ones first, more or less; what is filled in is copied first.

    False where one has no room, or where more is spent than before.
    """
    left = sum(first[old.kind] for old in removed)
    counts: dict[int, int] = {}
    for old in removed:
        for group, count in old.counts.items():
            counts[group] = counts.get(group, 0) + count
    strength = noise.random()
    together = noise.random() < 0.5
    heat: dict[int, float] = {}
    for group in sorted(counts):
        heat[group] = load[group] * (1 + strength * noise.uniform(-1, 1))
    groups = filler.packing.groups
    order = sorted(counts, key=lambda g: (groups[g].items[0] if together and groups[g].items else 0, -heat[g], g))
    private: set[int] = set()
    for group in order:
        cell: OpenCell | None = None
        for _ in range(counts[group]):
            if cell is None or filler.fit(cell, group) is None:
                cell = filler.choose(group)
                if cell is None:
                    cell = filler.open(group)
                    if cell is None or filler.fit(cell, group) is None:
                        return False
                    left -= first[cell.kind]
                    if left < 0:
                        return False
                    private.add(id(cell))
                elif id(cell) not in private:
                    cell = filler.private(cell)
                    private.add(id(cell))
            filler.add(cell, group)
    return True
