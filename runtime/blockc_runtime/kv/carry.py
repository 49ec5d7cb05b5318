"""Which KV groups of one plan go on in another, so that what they hold is found again.

In: two plans. Out: for groups of the new one the group of the old one whose pages it takes over. Invariant: two such
groups are alike in every layer and in the number of pages, and no group is taken over twice; a page is found by its
content (`pages.PageKey`), so that what the new plan cannot use is never found, and evicted in time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from blockc.plan import ExecutionPlan


def carried_groups(old: ExecutionPlan, new: ExecutionPlan) -> dict[int, int]:
    """New group -> old group. Of several that would do, the one with the most KV domains in common."""
    old_pages, new_pages = group_pages(old), group_pages(new)
    old_domains, new_domains = _domains(old), _domains(new)
    pairs = sorted(
        (-len(old_domains[before] & new_domains[after]), after, before)
        for after, group in enumerate(new.kv_groups)
        for before, other in enumerate(old.kv_groups)
        if group == other and new_pages[after] == old_pages[before]
    )
    carried: dict[int, int] = {}
    for _, after, before in pairs:
        if after not in carried and before not in carried.values():
            carried[after] = before
    return carried


def group_pages(plan: ExecutionPlan) -> tuple[int, ...]:
    """Pages of each KV group, of all instances together."""
    pages = [0] * len(plan.kv_groups)
    for instance in plan.instances:
        for group, count in instance.kv_pages.items():
            pages[group] += count
    return tuple(pages)


def _domains(plan: ExecutionPlan) -> Mapping[int, set[str]]:
    domains: defaultdict[int, set[str]] = defaultdict(set)
    for chain in plan.chains:
        for kv in chain.kv:
            domains[kv.group].add(kv.domain)
    return domains
