"""The KV index against the slow reference, step by step, and against a page memory that holds what was written."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from blockc_runtime.kv.index import KvIndex
from blockc_runtime.kv.prefix import Prefix
from blockc_runtime.limits import ChainLimits, EngineLimits, GroupLimits

from .reference import SlowKv, SlowRequest


def make_limits(pages, windows, sizes):
    chains = [((0, 1), ("low", "high")), ((0, 1), ("low", "high")), ((0, 1), ("low", "other")), ((1,), ("high",))]
    return EngineLimits(
        groups=tuple(
            GroupLimits(pages=pages, page_tokens=size, window=window)
            for size, window in zip(sizes, windows, strict=True)
        ),
        chains=tuple(
            ChainLimits(groups=groups, domains=domains, segments=(0,), instance=0, max_model_len=1000)
            for groups, domains in chains
        ),
        segment_count=1,
        max_batched_tokens=64,
        max_rows=8,
        tenants=(0,),
        weights=(1.0,),
    )


class KvMachine(RuleBasedStateMachine):
    @initialize(
        pages=st.integers(4, 24),
        windows=st.sampled_from([(None, None), (5, None), (None, 9), (3, 8), (2, 1)]),
        sizes=st.sampled_from([(2, 2), (2, 4), (3, 2), (4, 4)]),
    )
    def start(self, pages, windows, sizes):
        self.limits = make_limits(pages, windows, sizes)
        self.kv, self.slow = KvIndex(self.limits), SlowKv(self.limits)
        self.memory = {}  # (group, page) -> what its slots hold
        self.names = 0

    @rule(
        chain=st.integers(0, 3),
        isolation=st.sampled_from(["a", "b"]),
        stem=st.sampled_from([(0,) * 16, (0, 1) * 8, (0,) * 8 + (1,) * 8]),
        cut=st.integers(1, 16),
        tail=st.lists(st.integers(0, 1), max_size=4),
        spare=st.sampled_from([0, 0, 1, 9]),
    )
    def acquire(self, chain, isolation, stem, cut, tail, spare):
        self.names += 1
        name, tokens = f"r{self.names}", [*stem[:cut], *tail]
        request = SlowRequest(chain, isolation, tokens)
        reused = self.slow.reused(request)
        demand = list(self.slow.demand(request, reused))
        fits = all(
            entries - reused // group.page_tokens + min(spare, group.total // 8)
            <= group.available - sum(page in group.idle for page in found)
            for group, entries, found in demand
        )
        got = self.kv.acquire(name, chain=chain, prefix=Prefix(isolation, tokens), spare_pages=spare)
        assert got == (reused if fits else None)
        if not fits:
            return
        for group, entries, found in demand:
            for page in found:
                if page in group.idle:
                    group.idle.remove(page)
            for _ in range(entries - reused // group.page_tokens):
                group.take()
        request.committed = reused
        for index, group in enumerate(self.slow.groups):
            request.offered[index] = reused // group.page_tokens
        self._learn(name, request)
        self._check_content(name)

    @precondition(lambda self: self.slow.requests)
    @rule(data=st.data(), more=st.integers(0, 12))
    def reserve(self, data, more):
        name = data.draw(st.sampled_from(sorted(self.slow.requests)))
        request = self.slow.requests[name]
        tokens = request.committed + more
        needs = {
            index: max(0, -(-tokens // self.slow.groups[index].page_tokens) - len(table))
            for index, _, table in self.slow.of(name)
        }
        short = {index for index, need in needs.items() if need > self.slow.groups[index].available}
        assert self.kv.lacking(name, tokens) == short
        assert (self.kv.room(name) >= tokens) == (not short)
        assert self.kv.reserve(name, tokens) == (not short)
        if not short:
            for index, need in needs.items():
                for _ in range(need):
                    self.slow.groups[index].take()
            self._learn(name, request)

    @precondition(lambda self: self.slow.requests)
    @rule(data=st.data(), drawn=st.lists(st.integers(0, 1), max_size=3))
    def compute_and_commit(self, data, drawn):
        name = data.draw(st.sampled_from(sorted(self.slow.requests)))
        request = self.slow.requests[name]
        room = min(
            len(table) * self.slow.groups[index].page_tokens
            for index, _, table in self.slow.of(name)
        )  # fmt: skip
        tokens = data.draw(st.integers(request.committed, max(request.committed, min(room, len(request.tokens)))))
        self._write(name, request.committed, tokens)
        self.kv.commit(name, tokens)
        self.slow.commit(name, tokens)
        if tokens == len(request.tokens):
            request.tokens.extend(drawn)  # the list is shared with the index's prefix
        self._check_content(name)

    @precondition(lambda self: self.slow.requests)
    @rule(data=st.data(), more=st.integers(0, 6))
    def truncate(self, data, more):
        name = data.draw(st.sampled_from(sorted(self.slow.requests)))
        tokens = self.slow.requests[name].committed + more
        self.kv.truncate(name, tokens)
        self.slow.truncate(name, tokens)

    @precondition(lambda self: self.slow.requests)
    @rule(data=st.data())
    def release(self, data):
        name = data.draw(st.sampled_from(sorted(self.slow.requests)))
        self.kv.release(name)
        self.slow.release(name)

    @rule(nothing=st.sampled_from([True] + [False] * 9))
    def forget(self, nothing):
        if nothing:
            self.kv.forget()
            self.slow.forget()

    @invariant()
    def agrees(self):
        if not hasattr(self, "kv"):
            return
        self.kv.check_integrity()
        for group, usage in zip(self.slow.groups, self.kv.usage(), strict=True):
            assert (usage.free, usage.idle) == (group.free, len(group.idle))
        for name in self.slow.requests:
            assert self._tables(name) == [table for _, _, table in self.slow.of(name)]

    def _tables(self, name):
        return [list(table.entries) for table in self.kv._holders[name].tables]

    def _learn(self, name, request):
        self.slow.requests[name] = request
        self.slow.tables[name] = self._tables(name)

    def _write(self, name, start, stop):
        """What an executor does; nothing that anybody else can find or holds may be overwritten."""
        request = self.slow.requests[name]
        for index, domain, table in self.slow.of(name):
            size = self.slow.groups[index].page_tokens
            for position in range(start, stop):
                page = table[position // size]
                assert page is not None
                assert self.slow.groups[index].key_of(page) is None, "a published page is written"
                content = (domain, request.isolation, tuple(request.tokens[: position + 1]))
                self.memory.setdefault((index, page), [None] * size)[position % size] = content

    def _check_content(self, name):
        """All that a query after the committed tokens sees is what this request would have written."""
        request = self.slow.requests[name]
        if request.is_lost:
            return
        exact = self.kv.tables(name, request.committed)
        for (index, domain, _), table in zip(self.slow.of(name), exact, strict=True):
            group = self.slow.groups[index]
            assert len(table) == -(-request.committed // group.page_tokens)
            first = 0 if group.window is None else max(0, request.committed - group.window + 1)
            for position in range(first, request.committed):
                page = table[position // group.page_tokens]
                assert page is not None
                content = self.memory[index, page][position % group.page_tokens]
                assert content == (domain, request.isolation, tuple(request.tokens[: position + 1]))


TestKvMachine = KvMachine.TestCase
TestKvMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
