"""A KV index that is slow and obviously right: content by content, no hashes, no counters.

It learns page ids from the index's own tables and predicts everything else: what is reused, what is refused, which
entries a window leaves, what is evicted when.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Key = tuple[str, str, tuple[int, ...]]  # KV domain, isolation group, all tokens through the page


@dataclass
class SlowGroup:
    """Pages of one group. ``idle`` is oldest first."""

    total: int
    page_tokens: int
    window: int | None
    free: int = 0
    keys: dict[Key, int] = field(default_factory=dict)
    idle: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.free = self.total

    @property
    def available(self):
        return self.free + len(self.idle)

    def key_of(self, page):
        return next((key for key, own in self.keys.items() if own == page), None)

    def take(self):
        """Note that one page was taken; the evicted one, if the free ones were used up."""
        if self.free:
            self.free -= 1
            return None
        page = self.idle.pop(0)
        del self.keys[self.key_of(page)]
        return page

    def drop(self, page, still_held):
        if not still_held:
            if self.key_of(page) is None:
                self.free += 1
            else:
                self.idle.append(page)

    def first_visible_page(self, position):
        """The first page that a query at ``position`` looks into."""
        if self.window is None:
            return 0
        return max(0, position - self.window + 1) // self.page_tokens


@dataclass
class SlowRequest:
    chain: int
    isolation: str
    tokens: list[int]
    committed: int = 0
    is_lost: bool = False
    offered: dict[int, int] = field(default_factory=dict)  # group -> pages that were full once, each offered then


class SlowKv:
    """``tables`` are those of the index, to learn page ids from."""

    def __init__(self, limits):
        self.limits = limits
        self.groups = [SlowGroup(group.pages, group.page_tokens, group.window) for group in limits.groups]
        self.requests: dict[str, SlowRequest] = {}
        self.tables: dict[str, list[list[int | None]]] = {}

    def of(self, name):
        chain = self.limits.chains[self.requests[name].chain]
        return list(zip(chain.groups, chain.domains, self.tables[name], strict=True))

    def key(self, request, domain, group, page):
        return (domain, request.isolation, tuple(request.tokens[: (page + 1) * group.page_tokens]))

    def reused(self, request):
        """The largest length at which every page in sight is cached in every group."""
        chain = self.limits.chains[request.chain]
        pairs = [(self.groups[index], domain) for index, domain in zip(chain.groups, chain.domains, strict=True)]
        for length in range(len(request.tokens) - 1, 0, -1):
            if all(length % group.page_tokens == 0 for group, _ in pairs) and all(
                self.key(request, domain, group, page) in group.keys
                for group, domain in pairs
                for page in range(group.first_visible_page(length), length // group.page_tokens)
            ):
                return length
        return 0

    def demand(self, request, reused):
        """For each group of the chain: entries of the table to open, and the pages found for it."""
        chain = self.limits.chains[request.chain]
        for index, domain in zip(chain.groups, chain.domains, strict=True):
            group = self.groups[index]
            length = len(request.tokens)
            if group.window is not None:
                length = min(length, max(reused + 1, group.window))
            found = [
                group.keys[self.key(request, domain, group, page)]
                for page in range(group.first_visible_page(reused), reused // group.page_tokens)
            ]
            yield group, -(-length // group.page_tokens), found

    def held(self, index, page):
        return any(page in table for name in self.requests for group, _, table in self.of(name) if group == index)

    def commit(self, name, tokens):
        request = self.requests[name]
        request.committed = tokens
        for index, domain, table in self.of(name):
            group = self.groups[index]
            full = tokens // group.page_tokens
            for number in range(request.offered.get(index, 0), full):
                page = table[number]
                key = self.key(request, domain, group, number)
                is_new = key not in group.keys and group.key_of(page) is None
                if page is not None and is_new and not request.is_lost:
                    group.keys[key] = page
            request.offered[index] = full
        for index, _, table in self.of(name):
            group = self.groups[index]
            for number in range(group.first_visible_page(tokens)):
                page, table[number] = table[number], None
                if page is not None:
                    group.drop(page, self.held(index, page))

    def truncate(self, name, tokens):
        for index, _, table in self.of(name):
            group = self.groups[index]
            while len(table) > -(-tokens // group.page_tokens):
                page = table.pop()
                if page is not None:
                    group.drop(page, self.held(index, page))

    def release(self, name):
        entries = self.of(name)
        del self.requests[name], self.tables[name]
        for index, _, table in entries:
            for page in reversed(table):
                if page is not None:
                    self.groups[index].drop(page, self.held(index, page))

    def forget(self):
        for group in self.groups:
            group.keys.clear()
            group.free += len(group.idle)
            group.idle.clear()
        for request in self.requests.values():
            request.is_lost = True
