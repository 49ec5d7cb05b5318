"""How many KV pages each group gets on one device.

In: the chains on a device and its memory. Out: pages per group. Invariant: never less than one sequence of full
length of every chain, never more than ``max_rows`` of them, and with that the device's layout fits its memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockc.place.sizes import Sizes, kv_pages


def share_pages(sizes: Sizes, chains: Sequence[int], *, offered_bytes: int) -> dict[int, int]:
    """``max_rows`` full sequences if there is room; else what is left in proportion to what each group lacks.

    Groups of one chain lack the same number of pages, so they get the same: a sequence needs pages in all of them.
    """
    problem = sizes.problem
    least = sizes.least_pages(chains)
    wanted = {group: pages * problem.max_rows for group, pages in least.items()}
    # A page also costs one layer's part of the copy that attention makes of what it reads.
    costs = {
        group: problem.groups[group].page_bytes + kv_pages(problem.groups[group], 1).layer_page_bytes for group in least
    }
    base_bytes = sizes.layout(chains, {}, reserve_bytes=0).used_bytes
    left_bytes = offered_bytes - base_bytes - sum(least[group] * costs[group] for group in least)
    lacking = {group: (wanted[group] - least[group]) * costs[group] for group in least}
    total = sum(lacking.values())
    if total <= left_bytes:
        return wanted
    if left_bytes <= 0:
        return least
    pages = {group: least[group] + left_bytes * lacking[group] // (total * costs[group]) for group in least}
    return {group: min(count, wanted[group]) for group, count in pages.items()}
