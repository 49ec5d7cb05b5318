"""The pages of one KV group: who holds them, which are cached, which are free.

In: page counts and keys. Out: page ids. Invariant: a page is in exactly one of three states: free (no holder, no
key), idle (no holder, but published: found by its key until evicted) or held (by one request or more, published
or not). Idle pages are evicted least recently used first; determinism needs no clock for that.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

PageKey = tuple[str, bytes]
"""KV domain, and the digest of isolation group and tokens (`prefix.py`): the page's content, never a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageUsage:
    """Pages of one group by state; the three sum to ``total``.

    ``saved``: pages that would be needed besides if no two requests held one; ``evicted``: so many have been, ever.
    """

    total: int
    free: int
    idle: int
    held: int
    saved: int = 0
    evicted: int = 0


class Pages:
    """Page ids ``0 .. total - 1`` of one KV group."""

    __slots__ = ("_by_key", "_evicted", "_free", "_holders", "_idle", "_key_of", "_saved", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total - 1, -1, -1))
        self._holders = [0] * total
        self._key_of: dict[int, PageKey] = {}
        self._by_key: dict[PageKey, int] = {}
        # Least recently used first. A plain dict would look at every page that was ever taken from its front.
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._saved = 0
        self._evicted = 0

    @property
    def available(self) -> int:
        """Pages that ``take`` can still give, evicting where it must."""
        return len(self._free) + len(self._idle)

    def take(self) -> int:
        """Give a page to one holder, free ones first, else the idle one longest unused."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            del self._by_key[self._key_of.pop(page)]
            self._evicted += 1
        self._holders[page] = 1
        return page

    def find(self, key: PageKey) -> int | None:
        """Return the page published under a key."""
        return self._by_key.get(key)

    def is_idle(self, page: int) -> bool:
        """Whether nobody holds the page while it is still found by its key."""
        return page in self._idle

    def hold(self, page: int) -> None:
        """Add a holder to a published page."""
        self._saved += self._holders[page] > 0
        self._holders[page] += 1
        self._idle.pop(page, None)

    def drop(self, page: int) -> None:
        """Take one holder away; the last one leaves the page idle if it is published, free if not."""
        self._holders[page] -= 1
        self._saved -= self._holders[page] > 0
        if self._holders[page] == 0:
            if page in self._key_of:
                self._idle[page] = None
            else:
                self._free.append(page)

    def publish(self, page: int, key: PageKey) -> None:
        """Let a held page be found. Where equal content is already published, the first page stays the one."""
        if key not in self._by_key and page not in self._key_of:
            self._by_key[key] = page
            self._key_of[page] = key

    def forget(self) -> None:
        """Unpublish every page: what the memory holds is no longer known."""
        self._by_key.clear()
        self._key_of.clear()
        self._free.extend(self._idle)
        self._idle.clear()

    def usage(self) -> PageUsage:
        """Count the pages by state."""
        free, idle = len(self._free), len(self._idle)
        held = self.total - free - idle
        return PageUsage(total=self.total, free=free, idle=idle, held=held, saved=self._saved, evicted=self._evicted)

    def check(self, holders: list[int]) -> None:
        """Raise AssertionError unless states agree with each other and with the holders that tables add up to."""
        assert holders == self._holders, "pages are held by other tables than the index knows"
        assert self._saved == sum(max(0, count - 1) for count in holders), "pages that are shared are miscounted"
        assert len(set(self._free)) == len(self._free), "a page is free twice"
        free, idle = set(self._free), set(self._idle)
        held = {page for page, count in enumerate(holders) if count > 0}
        assert len(free) + len(idle) + len(held) == self.total, "a page is lost, or in two states"
        assert free | idle | held == set(range(self.total)), "a page is lost"
        assert {page: key for key, page in self._by_key.items()} == self._key_of, "keys disagree"
        assert idle <= self._key_of.keys(), "an idle page has no key"
        assert not free & self._key_of.keys(), "a free page has a key"
