"""What attention must know of one row, as plain data: the reference works from this alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class KvRow:
    """``count`` new tokens of one request, at positions ``start ...``; on the token axis they begin at ``first``.

    ``pages`` is the row's page table in one KV group; entries that a window has passed may be None.
    """

    first: int
    count: int
    start: int
    pages: tuple[int | None, ...]

    def slot(self, position: int, page_tokens: int) -> int:
        """The flat slot of a position. Raises ValueError where its page is gone."""
        page = self.pages[position // page_tokens]
        if page is None:
            raise ValueError(f"position {position} lies in a page that the window has passed")
        return page * page_tokens + position % page_tokens

    def slots(self, page_tokens: int) -> list[int]:
        """Flat slots of the new tokens, page by page."""
        slots: list[int] = []
        position, end = self.start, self.start + self.count
        while position < end:
            stop = min(end, (position // page_tokens + 1) * page_tokens)
            slot = self.slot(position, page_tokens)
            slots += range(slot, slot + stop - position)
            position = stop
        return slots

    def first_visible(self, window: int | None) -> int:
        """The lowest position that any of the new tokens attends to."""
        return 0 if window is None else max(0, self.start - window + 1)
