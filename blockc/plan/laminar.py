"""Whether sharing is laminar: any two segments' sets of chains contain one another or have nothing in common.

Fine-tunes that each change a stretch at the top or the bottom of one base give a laminar family. Two that agree with
a third in different stretches do not, and then no tree of variants describes what is shared.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def find_crossing(sets: Sequence[Sequence[Hashable]]) -> tuple[int, int] | None:
    """Indices of two sets that overlap with neither inside the other, smaller index first. None: laminar.

    Time is in proportion to the sizes of all sets: larger sets go first, and each element remembers the smallest set
    so far that holds it. A set whose elements remember different ones crosses one of those.
    """
    innermost: dict[Hashable, int] = {}
    members = [frozenset(items) for items in sets]
    for index in sorted(range(len(members)), key=lambda place: (-len(members[place]), place)):
        own = members[index]
        for outer in sorted({innermost[item] for item in own if item in innermost}):
            if not own <= members[outer]:
                return min(index, outer), max(index, outer)
        innermost.update(dict.fromkeys(own, index))
    return None


def crosses(one: Sequence[Hashable], other: Sequence[Hashable]) -> bool:
    """Whether the two sets overlap with neither inside the other."""
    first, second = set(one), set(other)
    return bool(first & second) and not (first <= second or second <= first)
