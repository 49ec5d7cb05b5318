"""Consecutive blocks divided into stages, so that the busiest stage has the least to do (dynamic programming).

In: how many blocks and stages, what some consecutive blocks cost, and whether they fit a stage. Out: where each stage
begins. Exact: `tests/place/test_partition.py` compares with trying all. Of equal divisions the one that begins its last
stages earliest is taken.
"""

from __future__ import annotations

from collections.abc import Callable

# Blocks ``first .. stop - 1``: their cost in any whole unit; None: they fit no stage.
PartCost = Callable[[int, int], int | None]


def partition(blocks: int, stages: int, cost: PartCost) -> tuple[int, ...] | None:
    """The first block of each stage, and at the end ``blocks``; None: there is no division in which every stage fits.

    Time: ``stages * blocks ** 2`` looks at costs.
    """
    if not 1 <= stages <= blocks:
        return None
    # least[k][j]: the largest cost of any of k + 1 stages of the first j blocks, and where the last of them begins.
    least: list[dict[int, tuple[int, int]]] = [
        {j: (own, 0) for j in range(1, blocks + 1) if (own := cost(0, j)) is not None}
    ]
    for _ in range(1, stages):
        row: dict[int, tuple[int, int]] = {}
        for first, (before, _begin) in least[-1].items():
            for stop in range(first + 1, blocks + 1):
                own = cost(first, stop)
                if own is None:
                    break  # more blocks only take more
                found = max(before, own), first
                if stop not in row or found < row[stop]:
                    row[stop] = found
        least.append(row)
    if blocks not in least[-1]:
        return None
    cuts = [blocks]
    for row in reversed(least):
        cuts.append(row[cuts[-1]][1])
    return tuple(reversed(cuts))
