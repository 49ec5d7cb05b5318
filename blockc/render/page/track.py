"""Where blocks stand on the line from a chain's first to its last, alike in every view.

In: the places at which something changes. Out: pixels. Long runs are wider than short ones, but not by as much as they
are longer: a head of one block can still be read and hit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from blockc.render.page.element import Markup, tag

NAMES: Final = 172  # pixels for names at the left
TRACK: Final = 580
WORDS: Final = 186  # pixels for words at the right
WIDTH: Final = NAMES + TRACK + WORDS
ROW: Final = 26
BOX: Final = 20  # of a row
TOP: Final = 26  # of the first row, below the numbers of blocks
_LEAST: Final = 62  # the narrowest run, if there is room
_CHAR: Final = 6.2  # a digit of the labels, on average


def positions(cuts: Sequence[int]) -> dict[int, float]:
    """Pixels of each cut. ``cuts``: sorted, two at least."""
    lengths = [math.sqrt(end - start) for start, end in pairwise(cuts)]
    spare = TRACK - _LEAST * len(lengths)
    least = _LEAST if spare > 0 else TRACK / max(1, len(lengths))
    scale = max(0, spare) / max(1e-9, sum(lengths))
    lefts, left = {cuts[0]: float(NAMES)}, float(NAMES)
    for cut, length in zip(cuts[1:], lengths, strict=True):
        left += least + scale * length
        lefts[cut] = left
    return lefts


def axis(cuts: Sequence[int], lefts: dict[int, float]) -> Iterator[Markup]:
    """Numbers of blocks above the rows."""
    yield tag("text", "block", x=NAMES - 10, y=14, class_="muted end")
    for cut, following in pairwise(cuts):
        words = str(cut) if following - cut == 1 else f"{cut}-{following - 1}"
        if fits(words, lefts[following] - lefts[cut]):
            yield tag("text", words, x=round((lefts[cut] + lefts[following]) / 2, 1), y=14, class_="muted middle")


def fits(words: str, width: float) -> bool:
    """Whether a label has room."""
    return len(words) * _CHAR + 10 <= width


def clipped(words: str, length: int) -> str:
    """At most ``length`` characters; the notes have all of them."""
    return words if len(words) <= length else words[: length - 1] + "…"


def drawing(parts: Sequence[Markup], rows: int, label: str, *, top: int = TOP) -> Markup:
    """The picture of so many rows, the first of which begins at ``top``."""
    height = top + rows * ROW + 2
    return tag(
        "svg",
        parts,
        class_="pick",
        width=WIDTH,
        height=height,
        viewBox=f"0 0 {WIDTH} {height}",
        role="group",
        aria_label=label,
    )
