"""Did you mean ...? The nearest of some names to one that does not exist.

Invariant: a suggestion is deterministic, and absent rather than far-fetched.
"""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST = 64  # names beyond this are not compared: the cost is quadratic in their length


def distance(a: str, b: str) -> int:
    """Return the number of edits (insert, delete, replace, swap neighbours) between two names."""
    two_above: list[int] = []
    above: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        two_above, above, row = above, row, [i, *[0] * len(b)]
        for j, y in enumerate(b, start=1):
            row[j] = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                row[j] = min(row[j], two_above[j - 2] + 1)
    return row[-1]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the name of ``known`` that ``name`` was probably meant to be."""
    if not name or len(name) > _LONGEST:
        return None
    limit = max(1, len(name) // 3)
    best: tuple[int, str] | None = None
    for candidate in known:
        if abs(len(candidate) - len(name)) > limit or len(candidate) > _LONGEST:
            continue
        edits = distance(name.lower(), candidate.lower())
        if edits <= limit and (best is None or (edits, candidate) < best):
            best = (edits, candidate)
    return best[1] if best is not None else None


def did_you_mean(name: str, known: Iterable[str], *, listing: str | None = None) -> str | None:
    """Return a help: the nearest name, else all names after ``listing`` if they are few."""
    names = sorted(set(known))
    if (near := nearest(name, names)) is not None:
        return f"did you mean `{near}`?"
    if listing is not None and names:
        shown = ", ".join(f"`{n}`" for n in names[:12])
        return f"{listing} {shown}" + (", ..." if len(names) > 12 else "")
    return None
