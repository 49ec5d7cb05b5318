"""Page tables of all requests, and exact reuse of what was computed before.

In: requests with their chain and tokens, and how far each has been computed. Out: page tables. No memory is touched
(`pool.py` has it) and no torch is needed.

Invariants. A page is written by the one request that took it, and not again once it is published. Only committed
tokens are published, under the KV domain of the group for that chain, the isolation group and all tokens from
position 0 on: chains with equal domains find each other's pages, isolation groups never do. What a method refuses,
it has not begun: a False or None leaves the index as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from blockc_runtime.kv.pages import Pages, PageUsage
from blockc_runtime.kv.prefix import Prefix
from blockc_runtime.limits import ChainLimits, EngineLimits, GroupLimits

PageTable = tuple[int | None, ...]


def pages_for(tokens: int, page_tokens: int) -> int:
    """Count the pages that hold positions ``0 .. tokens - 1``."""
    return -(-tokens // page_tokens)


def passed_pages(next_position: int, group: GroupLimits) -> int:
    """Count the leading pages that no query at ``next_position`` or later can see."""
    if group.window is None:
        return 0
    return max(0, next_position - group.window + 1) // group.page_tokens


@dataclass(slots=True, kw_only=True)
class _Table:
    """One request's pages of one group."""

    index: int  # of the group
    group: GroupLimits
    pages: Pages
    domain: str
    entries: list[int | None]
    passed: int  # leading entries that the window has passed
    published: int  # leading entries that have been offered to the cache
    frozen: PageTable | None = None  # the first of `entries`, until they change


@dataclass(slots=True, kw_only=True)
class _Holder:
    """One request: its tables, and how many of its tokens are committed."""

    prefix: Prefix
    tables: tuple[_Table, ...]
    committed: int
    is_lost: bool = False  # the memory behind its tables was lost: nothing of it may be found


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPages:
    """What one pause keeps: pages of groups, whichever index has those then."""

    pause: object
    pages: tuple[tuple[Pages, int], ...]

    def let_go(self) -> None:
        """They are as any others from now on."""
        for pages, page in self.pages:
            pages.let_go(page, self.pause)


class KvIndex:
    """Pages per KV group, page tables per request, and the cache of published pages."""

    def __init__(self, limits: EngineLimits, *, kept: Mapping[int, Pages] | None = None) -> None:
        """``kept``: pages of another plan's index in which groups of this one go on, while both are in use."""
        self._groups = limits.groups
        self._chains = limits.chains
        kept = kept or {}
        self._pages = tuple(
            kept[index] if index in kept else Pages(group.pages) for index, group in enumerate(limits.groups)
        )
        self._holders: dict[str, _Holder] = {}
        for chain in limits.chains:
            if len(set(chain.groups)) != len(chain.groups):
                raise ValueError(f"a chain has a KV group twice: {chain.groups}")

    def shortage(self, chain: int, tokens: int) -> str | None:
        """Say why ``tokens`` tokens of a chain could not be held even by an otherwise empty cache, if so."""
        for index in self._chains[chain].groups:
            group = self._groups[index]
            need = pages_for(tokens, group.page_tokens)
            if group.window is not None:  # a window of w positions touches this many pages at worst
                need = min(need, pages_for(group.window - 1, group.page_tokens) + 1)
            if need > group.pages:
                return f"{tokens} tokens need {need} KV pages of {group.page_tokens} tokens, there are {group.pages}"
        return None

    def acquire(self, request: str, *, chain: int, prefix: Prefix, spare_pages: int = 0) -> int | None:
        """Open tables for all tokens of ``prefix`` and return how many of them need no computing.

        The reused length is the largest at which every group of the chain has the pages that a query there sees;
        the last token is always left to compute, for its logits. Groups with a window get pages for as much of
        the rest as the window holds, and the others for all of it, so that prefills never wait for each other's
        pages. None: fewer pages are available than that and ``spare_pages`` (an eighth of the group at most) in
        some group.
        """
        if request in self._holders:
            raise ValueError(f"request {request!r} holds pages already")
        limits = self._chains[chain]
        reused = self._reusable_tokens(limits, prefix)
        tables = tuple(
            self._found(index, domain, prefix, reused)
            for index, domain in zip(limits.groups, limits.domains, strict=True)
        )
        wanted = [self._wanted(table.group, reused, len(prefix.tokens)) for table in tables]
        for table, want in zip(tables, wanted, strict=True):
            idle = sum(1 for page in table.entries if page is not None and table.pages.is_idle(page))
            spare = min(spare_pages, table.group.pages // 8)
            if want - len(table.entries) + spare > table.pages.available - idle:
                return None
        for table, want in zip(tables, wanted, strict=True):
            for page in table.entries:
                if page is not None:
                    table.pages.hold(page)
            table.entries.extend(table.pages.take() for _ in range(want - len(table.entries)))
        self._holders[request] = _Holder(prefix=prefix, tables=tables, committed=reused)
        return reused

    def findable(self, chain: int, prefix: Prefix) -> int:
        """How many tokens of ``prefix`` `acquire` would find now."""
        return self._reusable_tokens(self._chains[chain], prefix)

    def reserve(self, request: str, tokens: int) -> bool:
        """Make the tables cover positions ``0 .. tokens - 1``; False if pages of some group are lacking."""
        tables = self._holders[request].tables
        for table in tables:
            if len(table.entries) * table.group.page_tokens < tokens:
                break
        else:
            return True  # so it is for most decode rows
        short = [table for table in tables if len(table.entries) * table.group.page_tokens < tokens]
        for table in short:
            need = pages_for(tokens, table.group.page_tokens) - len(table.entries)
            if need > table.pages.available:
                return False
        for table in short:
            need = pages_for(tokens, table.group.page_tokens) - len(table.entries)
            table.entries.extend(table.pages.take() for _ in range(need))
            table.frozen = None
        return True

    def room(self, request: str) -> int:
        """Return the largest number of tokens that `reserve` would grant now."""
        return min(
            (len(table.entries) + table.pages.available) * table.group.page_tokens
            for table in self._holders[request].tables
        )

    def lacking(self, request: str, tokens: int) -> frozenset[int]:
        """Return the groups for whose pages `reserve` would refuse."""
        return frozenset(
            table.index
            for table in self._holders[request].tables
            if pages_for(tokens, table.group.page_tokens) - len(table.entries) > table.pages.available
        )

    def tables(self, request: str, tokens: int, *, start: int = 0) -> tuple[PageTable, ...]:
        """Return a table per group of the chain, each covering exactly positions ``0 .. tokens - 1``.

        ``start``: the first of them to be computed. Pages that it does not see are left out, though steps in flight may
        still need them.
        """
        return tuple(
            [_frozen(table, tokens, start) for table in self._holders[request].tables]  # faster than a generator
        )

    def commit(self, request: str, tokens: int) -> None:
        """State that KV of positions ``0 .. tokens - 1`` is computed and final; publish it, pass windows."""
        holder = self._holders[request]
        if not holder.committed <= tokens <= len(holder.prefix.tokens):
            raise ValueError(f"cannot commit {tokens} of {len(holder.prefix.tokens)} tokens")
        holder.committed = tokens
        for table in holder.tables:
            if tokens // table.group.page_tokens > table.published:
                self.publish(request)
                break
        for table in holder.tables:
            if table.group.window is not None and (passed := passed_pages(tokens, table.group)) > table.passed:
                _pass(table, passed)

    def publish(self, request: str) -> None:
        """Let others of the isolation group find the full pages of committed tokens. Idempotent."""
        holder = self._holders[request]
        if holder.is_lost:
            return
        for table in holder.tables:
            size = table.group.page_tokens
            full = holder.committed // size
            if full > table.published:
                digests = holder.prefix.digests(size, full)
                for position in range(max(table.published, table.passed), full):
                    page = table.entries[position]
                    assert page is not None, "a page inside the window is missing"
                    table.pages.publish(page, (table.domain, digests[position]))
                table.published = full

    def truncate(self, request: str, tokens: int) -> None:
        """Give back the pages beyond position ``tokens - 1``: what a draft reserved and nobody accepted."""
        holder = self._holders[request]
        if tokens < holder.committed:
            raise ValueError(f"{holder.committed} tokens are committed; cannot go back to {tokens}")
        for table in holder.tables:
            keep = pages_for(tokens, table.group.page_tokens)
            while len(table.entries) > keep:
                page = table.entries.pop()
                table.frozen = None
                if page is not None:
                    table.pages.drop(page)

    def release(self, request: str) -> None:
        """Give back all pages of a request; published ones stay findable until evicted."""
        for table in self._holders.pop(request).tables:
            for page in reversed(table.entries):  # a prefix is of use without its tail, not the other way round
                if page is not None:
                    table.pages.drop(page)

    def pause(self, request: str) -> KeptPages:
        """Like `release`; what others may find is evicted late until it is let go."""
        pause = object()  # of no other index, either: pages may be those of two
        kept = KeptPages(
            pause=pause,
            pages=tuple(
                (table.pages, page)
                for table in self._holders[request].tables
                for page in table.entries
                if page is not None and table.pages.keep(page, pause)
            ),
        )
        self.release(request)
        return kept

    def forget(self) -> None:
        """Drop the cache: the memory behind the pages was lost. Tables stay until released, and publish nothing."""
        for pages in self._pages:
            pages.forget()
        for holder in self._holders.values():
            holder.is_lost = True

    def usage(self) -> tuple[PageUsage, ...]:
        """Count the pages of each group by state."""
        return tuple(pages.usage() for pages in self._pages)

    def free_pages(self) -> tuple[int, ...]:
        """Pages per group that a new request could get, evicting what is cached."""
        return tuple(pages.available for pages in self._pages)

    def total_pages(self) -> tuple[int, ...]:
        """Pages per group."""
        return tuple(pages.total for pages in self._pages)

    @property
    def groups(self) -> tuple[Pages, ...]:
        """The pages of every group."""
        return self._pages

    def pages_of(self, group: int) -> Pages:
        """The pages of a group, for an index in which they go on."""
        return self._pages[group]

    def check_integrity(self) -> None:
        """Raise AssertionError if a page is lost, held by nobody's table, in two states or wrongly published.

        Only where no other index has any of its pages.
        """
        counts = [[0] * pages.total for pages in self._pages]
        for holder in self._holders.values():
            for table in holder.tables:
                for position, page in enumerate(table.entries):
                    assert (page is None) == (position < table.passed), "a gap outside the passed window"
                    if page is not None:
                        counts[table.index][page] += 1
                size = table.group.page_tokens
                assert len(table.entries) * size >= holder.committed, "committed tokens without a page"
                assert table.published * size <= holder.committed, "published tokens are not committed"
                frozen = table.frozen or ()
                assert list(frozen) == table.entries[: len(frozen)], "a stale table"
        for pages, count in zip(self._pages, counts, strict=True):
            pages.check(count)

    def _reusable_tokens(self, chain: ChainLimits, prefix: Prefix) -> int:
        """Return the largest length at which all groups hit, at a page boundary of each of them."""
        if not chain.groups:
            return 0
        step = math.lcm(*(self._groups[index].page_tokens for index in chain.groups))
        length = (len(prefix.tokens) - 1) // step * step
        while length > 0:
            shorter = min(
                self._hit_below(index, domain, prefix, length)
                for index, domain in zip(chain.groups, chain.domains, strict=True)
            )
            if shorter == length:
                return length
            length = shorter // step * step
        return 0

    def _hit_below(self, index: int, domain: str, prefix: Prefix, length: int) -> int:
        """Return the largest candidate up to ``length`` that this group does not rule out.

        Full attention reads all pages before the query, so the first miss counts, and a scan from the front ends
        early for the common short hit. A window reads its own pages only, so the last miss in sight counts.
        """
        group = self._groups[index]
        size = group.page_tokens
        digests = prefix.digests(size, length // size)
        find = self._pages[index].find
        if group.window is None:
            for page in range(length // size):
                if find((domain, digests[page])) is None:
                    return page * size
            return length
        for page in range(length // size - 1, passed_pages(length, group) - 1, -1):
            if find((domain, digests[page])) is None:
                return page * size
        return length

    def _found(self, index: int, domain: str, prefix: Prefix, reused: int) -> _Table:
        """Build a table of the cached pages that a query at position ``reused`` sees; not yet held."""
        group, pages = self._groups[index], self._pages[index]
        full, passed = reused // group.page_tokens, passed_pages(reused, group)
        digests = prefix.digests(group.page_tokens, full)
        entries: list[int | None] = [None] * passed
        entries.extend(pages.find((domain, digests[page])) for page in range(passed, full))
        return _Table(
            index=index,
            group=group,
            pages=pages,
            domain=domain,
            entries=entries,
            passed=passed,
            published=full,
        )

    def _wanted(self, group: GroupLimits, reused: int, tokens: int) -> int:
        """Count the table entries to open for ``tokens`` tokens of which ``reused`` are found."""
        if group.window is not None:
            # Within what `shortage` allows for, or a request alone could fail to get in.
            tokens = min(tokens, max(reused + 1, group.window))
        return pages_for(tokens, group.page_tokens)


def _frozen(table: _Table, tokens: int, start: int) -> PageTable:
    count = -(-tokens // table.group.page_tokens)
    if table.frozen is None or len(table.frozen) != count:
        table.frozen = tuple(table.entries[:count])  # the same object until there is a page more
    frozen = table.frozen
    group = table.group
    if group.window is not None and start - group.window + 1 >= (table.passed + 1) * group.page_tokens:
        passed = passed_pages(start, group)
        return (*[None] * passed, *frozen[passed:])
    return frozen


def _pass(table: _Table, passed: int) -> None:
    """Drop the pages that the window has passed."""
    for position in range(table.passed, passed):
        page = table.entries[position]
        assert page is not None, "a page inside the window is missing"
        table.pages.drop(page)
        table.entries[position] = None
    table.passed = passed
    table.frozen = None
