"""KV pages as numbers, for workloads in which no prompt begins as another does.

In: what the scheduler asks of `blockc_runtime.kv.index.KvIndex`. Out: the same answers, without page ids, tables and
digests. All that a request can find in the cache is then what it computed itself before it was preempted: pages that
are idle are runs of one request's leading pages, given up from the one that was released first, from its end.
Invariant: for chains of one group without a window it answers as `KvIndex` does; `tests/simulate/test_counted.py` runs
both side by side.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from blockc_runtime.kv.index import KvIndex, PageTable, pages_for
from blockc_runtime.kv.pages import PageUsage
from blockc_runtime.kv.prefix import Prefix
from blockc_runtime.limits import EngineLimits

_NO_TABLES: tuple[PageTable, ...] = ()


def is_countable(limits: EngineLimits) -> bool:
    """Whether counts are exact: every chain has one group, and none has a window."""
    return all(len(chain.groups) == 1 for chain in limits.chains) and all(
        group.window is None for group in limits.groups
    )


@dataclass(slots=True)
class _Pool:
    """The pages of one group. ``idle``: request -> its leading pages that can still be found, oldest run first."""

    total: int
    page_tokens: int
    free: int
    idle_pages: int = 0
    idle: OrderedDict[str, int] = field(default_factory=OrderedDict)
    evicted: int = 0

    @property
    def available(self) -> int:
        return self.free + self.idle_pages

    def take(self, pages: int) -> None:
        """Free ones first, then those that are idle for longest."""
        evict = max(0, pages - self.free)
        self.free -= pages - evict
        self.idle_pages -= evict
        self.evicted += evict
        while evict:
            request, run = next(iter(self.idle.items()))
            if run <= evict:
                del self.idle[request]
                evict -= run
            else:
                self.idle[request] = run - evict
                evict = 0


@dataclass(slots=True)
class _Table:
    """One request's pages, and how many of its tokens are committed."""

    pool: _Pool
    entries: int
    committed: int


class CountedKv(KvIndex):
    """See the module's text. Of its base class it uses `shortage` only."""

    def __init__(self, limits: EngineLimits) -> None:
        super().__init__(limits)
        assert is_countable(limits), "counts are exact for chains of one group without a window"
        self._pools = tuple(
            _Pool(total=group.pages, page_tokens=group.page_tokens, free=group.pages) for group in limits.groups
        )
        self._tables: dict[str, _Table] = {}

    def acquire(self, request: str, *, chain: int, prefix: Prefix, spare_pages: int = 0) -> int | None:
        """Take pages for all tokens; of them is found what this request has left behind."""
        if request in self._tables:
            raise ValueError(f"request {request!r} holds pages already")
        pool = self._pools[self._chains[chain].groups[0]]
        found = min(pool.idle.get(request, 0), (len(prefix.tokens) - 1) // pool.page_tokens)
        wanted = pages_for(len(prefix.tokens), pool.page_tokens)
        if wanted - found + min(spare_pages, pool.total // 8) > pool.available - found:
            return None
        if request in pool.idle:
            pool.idle_pages -= pool.idle[request]
            pool.free += pool.idle.pop(request) - found
        pool.take(wanted - found)
        self._tables[request] = _Table(pool, wanted, found * pool.page_tokens)
        return found * pool.page_tokens

    def reserve(self, request: str, tokens: int) -> bool:
        """Cover ``tokens`` tokens; False if pages are lacking."""
        table = self._tables[request]
        pool = table.pool
        more = -(-tokens // pool.page_tokens) - table.entries
        if more > 0:
            if more > pool.free + pool.idle_pages:
                return False
            pool.take(more)
            table.entries += more
        return True

    def room(self, request: str) -> int:
        """The largest number of tokens that `reserve` would grant now."""
        table = self._tables[request]
        return (table.entries + table.pool.available) * table.pool.page_tokens

    def lacking(self, request: str, tokens: int) -> frozenset[int]:
        """The group, if `reserve` would refuse for want of its pages."""
        table = self._tables[request]
        if pages_for(tokens, table.pool.page_tokens) - table.entries <= table.pool.available:
            return frozenset()
        return frozenset(index for index, pool in enumerate(self._pools) if pool is table.pool)

    def tables(self, request: str, tokens: int, *, start: int = 0) -> tuple[PageTable, ...]:
        """None: nobody looks at pages."""
        del request, tokens, start
        return _NO_TABLES

    def commit(self, request: str, tokens: int) -> None:
        """What is computed can be found later."""
        self._tables[request].committed = tokens

    def publish(self, request: str) -> None:
        """Nobody else looks for it."""

    def truncate(self, request: str, tokens: int) -> None:
        """Give back the pages beyond ``tokens`` tokens."""
        table = self._tables[request]
        keep = pages_for(tokens, table.pool.page_tokens)
        if table.entries > keep:
            table.pool.free += table.entries - keep
            table.entries = keep

    def release(self, request: str) -> None:
        """Give back all pages of a request; full ones can be found until others need them."""
        table = self._tables.pop(request)
        pool = table.pool
        full = table.committed // pool.page_tokens
        pool.free += table.entries - full
        if full:
            pool.idle_pages += full
            pool.idle[request] = full

    def forget(self) -> None:
        """Nothing can be found any more."""
        for pool in self._pools:
            pool.free += pool.idle_pages
            pool.idle_pages = 0
            pool.idle.clear()

    def usage(self) -> tuple[PageUsage, ...]:
        """Count the pages of each group by state."""
        return tuple(
            PageUsage(
                total=pool.total, free=pool.free, idle=pool.idle_pages, held=pool.total - pool.available,
                evicted=pool.evicted,
            )
            for pool in self._pools
        )  # fmt: skip

    def free_pages(self) -> tuple[int, ...]:
        """Pages per group that a new request could get."""
        return tuple(pool.available for pool in self._pools)

    def total_pages(self) -> tuple[int, ...]:
        """Pages per group."""
        return tuple(pool.total for pool in self._pools)

    def check_integrity(self) -> None:
        """Raise AssertionError if the counts do not add up."""
        for pool in self._pools:
            held = sum(table.entries for table in self._tables.values() if table.pool is pool)
            assert pool.free + pool.idle_pages + held == pool.total, "pages are lost or made"
            assert sum(pool.idle.values()) == pool.idle_pages, "idle pages are miscounted"
