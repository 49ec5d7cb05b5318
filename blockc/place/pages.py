"""How many KV pages each group gets on one device.

In: the chains on a device and its memory. Out: pages per group. Invariant: never less than one sequence of full
length of every chain, never more than ``max_rows`` of them, and with that the device's layout fits its memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from blockc.place.sizes import Sizes


def share_pages(sizes: Sizes, chains: Sequence[int], *, offered_bytes: int) -> dict[int, int]:
    """``max_rows`` full sequences if there is room; else all groups as far on the way there as there is.

    Groups of one chain lack the same number of pages, so they get the same: a sequence needs pages in all of them.
    The chains' least layout must fit.
    """
    least = sizes.least_pages(chains)
    lacking = {group: pages * (sizes.problem.max_rows - 1) for group, pages in least.items()}
    steps = max(lacking.values(), default=0)

    def pages(step: int) -> dict[int, int]:
        return {group: least[group] + lacking[group] * step // max(1, steps) for group in least}

    def used_bytes(step: int) -> int:
        return sizes.layout(chains, pages(step), reserve_bytes=0).used_bytes

    return pages(bisect_right(range(steps + 1), offered_bytes, key=used_bytes, lo=1) - 1)
