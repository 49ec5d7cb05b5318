"""How many KV pages each group gets on one device.

In: the chains on a device and its memory. Out: pages per group. Invariant: never less than one sequence of full
length of every chain and what is expected in flight beside it, never more than ``max_rows`` such sequences, and with
that the device's layout fits its memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

from blockc.ir.layout import Layout
from blockc.place.problem import PlaceProblem

_NONE: Final[Mapping[int, int]] = MappingProxyType({})


class Paged(Protocol):
    """What a device takes with so many pages: of a cell (`Sizes`), or the fullest of a pipeline."""

    @property
    def problem(self) -> PlaceProblem:
        """Whose ``max_rows`` counts."""

    def least_pages(self, chains: Sequence[int], /) -> dict[int, int]:
        """By group those of the longest sequence."""

    def layout(self, chains: Sequence[int], pages: dict[int, int], /, *, reserve_bytes: int) -> Layout:
        """The bytes."""


def share_pages(
    sizes: Paged, chains: Sequence[int], *, offered_bytes: int, expected: Mapping[int, int] = _NONE
) -> dict[int, int]:
    """``max_rows`` full sequences if there is room; else all groups as far on the way there as there is.

    Groups of one chain lack the same number of pages, so they get the same: a sequence needs pages in all of them.
    ``expected``: pages by group that the load has in flight. The chains' least layout must fit, and with those all but
    what was rounded.
    """
    longest = sizes.least_pages(chains)
    most = {group: pages * sizes.problem.max_rows for group, pages in longest.items()}

    def beside(permille: int) -> dict[int, int]:
        return {
            group: min(most[group], pages + expected.get(group, 0) * permille // 1000)
            for group, pages in longest.items()
        }

    def expected_bytes(permille: int) -> int:
        return sizes.layout(chains, beside(permille), reserve_bytes=0).used_bytes

    least = beside(bisect_right(range(1001), offered_bytes, key=expected_bytes, lo=1) - 1)
    lacking = {group: most[group] - least[group] for group in least}
    steps = max(lacking.values(), default=0)

    def pages(step: int) -> dict[int, int]:
        return {group: least[group] + lacking[group] * step // max(1, steps) for group in least}

    def used_bytes(step: int) -> int:
        return sizes.layout(chains, pages(step), reserve_bytes=0).used_bytes

    return pages(bisect_right(range(steps + 1), offered_bytes, key=used_bytes, lo=1) - 1)
