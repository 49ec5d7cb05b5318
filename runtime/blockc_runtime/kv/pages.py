"""The pages of one KV group: who holds them, which are cached, which are free.

In: page counts and keys. Out: page ids. Invariant: a page is in exactly one of three states: free (no holder, no
key), idle (no holder, but published: found by its key until evicted) or held (by one request or more, published
or not). Idle pages are evicted least recently used first; determinism needs no clock for that. Those that a pause keeps
(`scheduler.sessions`) are evicted after all others, and are half of the pages at most.
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

    __slots__ = (
        "_by_key", "_evicted", "_free", "_holders", "_idle", "_keepers", "_kept", "_key_of", "_saved", "total",
    )  # fmt: skip

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total - 1, -1, -1))
        self._holders = [0] * total
        self._key_of: dict[int, PageKey] = {}
        self._by_key: dict[PageKey, int] = {}
        # Least recently used first. A plain dict would look at every page that was ever taken from its front.
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._keepers: dict[int, set[object]] = {}  # pauses by page, held or idle
        self._kept: OrderedDict[int, None] = OrderedDict()  # idle pages with keepers, first to go first
        self._saved = 0
        self._evicted = 0

    @property
    def available(self) -> int:
        """Pages that ``take`` can still give, evicting where it must."""
        return len(self._free) + len(self._idle) + len(self._kept)

    def take(self) -> int:
        """Give a page to one holder, free ones first, else the idle one longest unused."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = (self._idle or self._kept).popitem(last=False)
            self._keepers.pop(page, None)
            del self._by_key[self._key_of.pop(page)]
            self._evicted += 1
        self._holders[page] = 1
        return page

    def find(self, key: PageKey) -> int | None:
        """Return the page published under a key."""
        return self._by_key.get(key)

    def is_idle(self, page: int) -> bool:
        """Whether nobody holds the page while it is still found by its key."""
        return page in self._idle or page in self._kept

    def hold(self, page: int) -> None:
        """Add a holder to a published page."""
        self._saved += self._holders[page] > 0
        self._holders[page] += 1
        self._idle.pop(page, None)
        self._kept.pop(page, None)

    def drop(self, page: int) -> None:
        """Take one holder away; the last one leaves the page idle if it is published, free if not."""
        self._holders[page] -= 1
        self._saved -= self._holders[page] > 0
        if self._holders[page] == 0:
            if page in self._keepers:
                self._kept[page] = None
                if len(self._kept) > self.total // 2:
                    self._unkeep(next(iter(self._kept)))
            elif page in self._key_of:
                self._idle[page] = None
            else:
                self._free.append(page)

    def keep(self, page: int, pause: object) -> bool:
        """Have a held page evicted late once nobody holds it, until `let_go`; False if nobody could find it then."""
        if page not in self._key_of:
            return False
        self._keepers.setdefault(page, set()).add(pause)
        return True

    def let_go(self, page: int, pause: object) -> None:
        """Undo `keep`; nothing if the page has been given to others since."""
        keepers = self._keepers.get(page)
        if keepers is not None:
            keepers.discard(pause)
            if not keepers:
                self._unkeep(page)

    def _unkeep(self, page: int) -> None:
        del self._keepers[page]
        if page in self._kept:
            del self._kept[page]
            self._idle[page] = None

    def publish(self, page: int, key: PageKey) -> None:
        """Let a held page be found. Where equal content is already published, the first page stays the one."""
        if key not in self._by_key and page not in self._key_of:
            self._by_key[key] = page
            self._key_of[page] = key

    def forget(self) -> None:
        """Unpublish every page: what the memory holds is no longer known."""
        self._by_key.clear()
        self._key_of.clear()
        self._keepers.clear()
        for idle in (self._idle, self._kept):
            self._free.extend(idle)
            idle.clear()

    def usage(self) -> PageUsage:
        """Count the pages by state."""
        free, idle = len(self._free), len(self._idle) + len(self._kept)
        held = self.total - free - idle
        return PageUsage(total=self.total, free=free, idle=idle, held=held, saved=self._saved, evicted=self._evicted)

    def check(self, holders: list[int]) -> None:
        """Raise AssertionError unless states agree with each other and with the holders that tables add up to."""
        assert holders == self._holders, "pages are held by other tables than the index knows"
        assert len(set(self._free)) == len(self._free), "a page is free twice"
        free, idle = set(self._free), {*self._idle, *self._kept}
        held = {page for page, count in enumerate(holders) if count > 0}
        assert self._saved == sum(holders) - len(held), "pages that are shared are miscounted"
        assert len(free) + len(idle) + len(held) == self.total, "a page is lost, or in two states"
        assert free | idle | held == set(range(self.total)), "a page is lost"
        assert {page: key for key, page in self._by_key.items()} == self._key_of, "keys disagree"
        assert idle <= self._key_of.keys(), "an idle page has no key"
        assert not free & self._key_of.keys(), "a free page has a key"
        assert not self._idle.keys() & self._kept.keys(), "a page is idle and kept"
        assert self._kept.keys() <= self._keepers.keys() <= self._key_of.keys(), "a page is kept for nobody"
        assert not self._idle.keys() & self._keepers.keys(), "a page that is kept goes early"
