"""Layered prefill: a chunk of a prompt that goes through the layers of its model in several steps.

In: how many tokens a chunk has, and how many a step should compute. Out: the parts of the layers, one a step; between
two steps the chunk's hidden states are parked with the executor. A step is as short as one of a small chunk, and the
weights are still read once for a large one (arXiv 2510.08055 has the idea). Invariant: the parts of a chunk are all of
its chain's blocks, in order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """``tokens`` of a prompt that have passed ``part`` of ``parts``. ``work``: tokens' worth of each part."""

    tokens: int
    parts: int
    part: int = 0

    @property
    def work(self) -> int:
        """What a part costs, as so many tokens through all layers."""
        return -(-self.tokens // self.parts)

    @property
    def is_last(self) -> bool:
        """Whether only its last part is left."""
        return self.part + 1 == self.parts

    @property
    def read(self) -> int:
        """Tokens that count as read when the part is done: whoever reads is charged as it goes."""
        return self.tokens * (self.part + 1) // self.parts

    def blocks(self, counts: tuple[int, ...]) -> tuple[int, int]:
        """First and stop of the next part, where a chain's segments have so many blocks."""
        total = sum(counts)
        return total * self.part // self.parts, total * (self.part + 1) // self.parts

    def next(self) -> Chunk:
        """The chunk with one more part done."""
        return replace(self, part=self.part + 1)


def parts_of(tokens: int, *, work: int, blocks: int, most: int) -> int:
    """In how many parts ``tokens`` go, so that each costs ``work`` of them at most if ``most`` parts allow it."""
    return max(1, min(-(-tokens // work), blocks, most))
