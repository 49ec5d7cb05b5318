"""A seeded adversary: arrivals, cancellations, faults of every scope, lost and late results, tiny pools.

Every tick may admit, cancel, issue a step and let the oldest one in flight come back, whole, spoiled or not at all.
In most worlds with several steps in flight, rows follow rows in flight and are fed by them.
What is checked, at every step: budgets and launches; that no page is written by one row while another row of any step
in flight holds it; that no page is read under another KV domain or isolation group than it was written under; the
index's own integrity; and that something runs whenever something could. At the end: every request ended once, with
the tokens it would have alone, and no page is held.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace
from itertools import groupby

from blockc_runtime.limits import EngineLimits, TurnLimits
from blockc_runtime.request import Sampling
from blockc_runtime.step import Fault, Feed, Row, RowResult, Step, StepResult

from .harness import BLOCKS, PAGE, VIRTUAL, Run, alone, limits, request

INJECTED = "injected"


def taking_turns(seed: int, own: EngineLimits) -> EngineLimits:
    """For two seeds of three: some segments take turns, in a room that the largest chain fills or nearly so."""
    rng = random.Random(seed)
    if not seed % 3:
        return own
    turns = {
        segment: TurnLimits(nbytes=rng.randint(1, 40), uses_rps=rng.random())
        for segment in rng.sample(range(len(BLOCKS)), rng.randint(1, len(BLOCKS)))
    }
    largest = max(sum(turns[s].nbytes for s in chain.segments if s in turns) for chain in own.chains)
    return replace(own, turns=turns, room_bytes=largest + rng.choice([0, 0, 10]))


class Adversary:
    """One seed's world. ``is_kind``: no faults and no cancellations, so that every request must succeed."""

    def __init__(self, seed: int, *, is_kind: bool = False) -> None:
        self.rng = rng = random.Random(seed)
        self.in_flight: deque[Step] = deque()
        self.depth = rng.choice([1, 1, 2, 3])
        max_rows = rng.choice([1, 3, 8])
        parts = rng.choice([1, 1, 2, 4])
        self.run = Run(
            taking_turns(
                seed,
                limits(
                    pages=rng.choice([(16, 16), (17, 40), (40, 17), (60, 60), (40, 5), (20, 8)]),
                    max_rows=max_rows,
                    max_batched_tokens=rng.choice([1, 3, 16, 64] if parts == 1 else [parts * max_rows, 64]),
                    parts=parts,
                    windows=rng.choice([(None, None), (6, None), (9, 13), (None, 2), (None, 9)]),
                    weights=rng.choice([(1.0,), (1.0, 1.0, 2.0), (0.5, 3.0)]),
                    overlaps=self.depth > 1 and rng.random() < 0.7,
                ),
            ),
            {"max_running": max_rows * rng.choice([1, self.depth]), "worker_tries": rng.choice([1, 3, 100])},
        )
        rates = [0.0, 0.0, 0.02, 0.1]
        self.fault_rate = 0.0 if is_kind else rng.choice(rates)
        self.loss_rate = 0.0 if is_kind else rng.choice(rates)
        self.cancel_rate = 0.0 if is_kind else rng.choice([0.0, 0.1, 0.4])
        self.is_hostile = True
        self.owners: dict[tuple[int, int], tuple[str, str]] = {}  # (group, page) -> (domain, isolation group)
        self.requests = self._requests()
        self.by_id = {own.id: own for own in self.requests}
        self.started: set[str] = set()
        self.reads = random.Random(seed)
        self.turns = 0  # segments that were read
        self.parted = 0  # rows that passed a part of the layers
        self.fed = 0  # rows whose token a step in flight drew
        self.admitted: list[str] = []

    def play(self) -> Run:
        """Everything from the first arrival to the last page."""
        todo = deque(self.requests)
        ticks = self.rng.randint(20, 120)
        while todo or ticks > 0:
            ticks -= 1
            while todo and self.rng.random() < 0.4:
                own = todo.popleft()
                self.run.admit(own)
                self.admitted.append(own.id)
            if self.admitted and self.rng.random() < self.cancel_rate:
                self.run.take(self.run.scheduler.cancel(self.rng.choice(self.admitted), self.run.now_s))
            self._tick()
        self.is_hostile = False
        # Whoever is left computes at most its context per preemption, and a preemption buys another a token.
        bound = 4 * sum(own.max_tokens + len(own.prompt) + len(VIRTUAL) for own in self.requests) + 100
        while self.run.scheduler.has_work:
            bound -= 1
            assert bound > 0, "a request starves"
            self._tick()
        self._judge()
        return self.run

    def _requests(self):
        rng = self.rng
        stems = [[rng.randrange(100) for _ in range(rng.randint(1, 24))] for _ in range(3)]
        made = []
        for number in range(rng.randint(3, 25)):
            prompt = [*rng.choice(stems), *(rng.randrange(100) for _ in range(rng.randint(0, 12)))]
            sampling = Sampling(temperature=rng.choice([0.0, 1.0]), seed=rng.randrange(3))
            own = request(
                f"r{number}", prompt, chain=rng.randrange(6), app=rng.randrange(6),
                max_tokens=rng.randint(1, 30), group=rng.choice(["a", "b"]), sampling=sampling,
            )  # fmt: skip
            if rng.random() < 0.2:
                own = request(
                    own.id, prompt, chain=own.chain, app=own.app, max_tokens=own.max_tokens,
                    group=own.isolation_group, stop=[rng.choice(alone(own))], sampling=sampling,
                )  # fmt: skip
            made.append(own)
        return made

    def _tick(self) -> None:
        self.run.now_s += self.rng.random()
        while len(self.in_flight) < self.depth:
            self._read()
            step = self.run.scheduler.schedule(self.run.now_s)
            for turn in self.run.scheduler.take_turns():
                used = {row.chain for each in self.in_flight for row in each.rows}
                passed = {segment for chain in used for segment in self.run.own.chains[chain].segments}
                assert passed.isdisjoint(turn.out), "a step in flight uses what goes"
                self.turns += 1
                self.run.executor.bring(turn)
            if step is None:
                idle = self.in_flight or not self.run.scheduler.has_work or self.run.scheduler.is_reading
                assert idle, "requests are left, and nothing runs"
                break
            self._look_at(step)
            self.run.executor.submit(step)
            self.in_flight.append(step)
            if self.rng.random() < 0.3:
                break
        if self.in_flight and self.rng.random() < 0.8:  # else it is late
            self._come_back()
        self.run.kv.check_integrity()

    def _read(self) -> None:
        """Weights that were asked for are there, or some of them later."""
        if not self.run.own.turns or (self.is_hostile and self.reads.random() < 0.3):
            return
        for segment, problem in self.run.executor.brought():
            self.run.take(self.run.scheduler.brought(segment, problem))

    def _come_back(self) -> None:
        step = self.in_flight.popleft()
        if self.is_hostile and self.rng.random() < self.loss_rate:
            self._lose(step)
            return
        result = self.run.executor.collect()
        for row, outcome in zip(step.rows, result.rows, strict=True):
            # What a row yields that follows one which was spoiled is nobody's.
            assert outcome.fault is None or row.request in self.run.ends, outcome.fault
        if self.is_hostile and self.rng.random() < self.fault_rate:
            result = self._spoil(step, result)
        self._complete(step, result)
        if self.rng.random() < 0.1:
            assert self.run.scheduler.complete(step, result, self.run.now_s) == (), "a result counts once"

    def _complete(self, step: Step, result: StepResult) -> None:
        events = self.run.scheduler.complete(step, result, self.run.now_s)
        self.run.log.append((step.id, [(row.request, row.start, len(row.tokens)) for row in step.rows]))
        self.run.take(events)

    def _lose(self, step: Step) -> None:
        """The worker dies: its memory is gone, and so are all steps in flight, whose results never come."""
        self.run.executor.close()
        lost = [step, *self.in_flight]
        self.in_flight.clear()
        for each in lost:
            fault = Fault(scope="worker", message=f"{INJECTED} loss")
            rows = tuple(RowResult(tokens=(), logprobs=(), fault=fault) for _ in each.rows)
            self._complete(each, StepResult(step=each.id, rows=rows))
            self.run.kv.check_integrity()

    def _spoil(self, step: Step, result: StepResult) -> StepResult:
        """A fault of one row or of one launch; what such rows wrote is garbage."""
        if self.rng.random() < 0.5:
            scope, hit = "row", (self.rng.randrange(len(step.rows)),)
        else:
            scope, hit = "launch", self.rng.choice(step.launches).rows
        rows = list(result.rows)
        for index in hit:
            rows[index] = RowResult(tokens=(), logprobs=(), fault=Fault(scope=scope, message=f"{INJECTED} {scope}"))
            for group, page in self._written(step.rows[index]):
                held = self.run.executor._memory[group].pages.get(page)
                if held is not None:  # else it follows a row that was spoiled, and was not run
                    held.hashes[:] = [hash_ ^ 0xBAD for hash_ in held.hashes]
        return StepResult(step=step.id, rows=tuple(rows))

    def _look_at(self, step: Step) -> None:
        own = self.run.own
        assert 0 < len(step.rows) <= own.max_rows
        assert sum(len(row.tokens) for row in step.rows) <= own.max_batched_tokens
        chains = [row.chain for row in step.rows]
        assert len(list(groupby(chains))) == len(set(chains)), "rows of a chain stand together"
        self._look_at_launches(step)
        assert len({row.request for row in step.rows}) == len(step.rows), "a request has two rows"
        flying = {row.request: (each.id, index, row) for each in self.in_flight for index, row in enumerate(each.rows)}
        for row in step.rows:
            self._look_at_follower(row, *flying.get(row.request, (0, 0, None)))
        for row in step.rows:
            self._look_at_pages(row)
            virtual = own.chains[row.chain].virtual_tokens[row.start : row.start + len(row.tokens)]
            assert row.tokens[: len(virtual)] == virtual, "a chain's virtual tokens stand before every prompt"
        new = [row for row in step.rows if row.request not in self.started]
        self.started.update(row.request for row in new)
        for row in new:
            self._look_at_turn(row)
        self._look_at_writes(step)

    def _look_at_follower(self, row: Row, number: int, index: int, before: Row | None) -> None:
        """A row goes on exactly where the last one of its request does that is in flight, with the token it draws."""
        if before is None:
            assert row.fed is None, "a row waits for a token that is there"
            return
        assert self.run.own.overlaps, "a request is in flight twice"
        assert (row.fed is None) == (not before.samples)
        if before.samples:
            self.fed += 1
            assert (row.fed, row.tokens, row.start) == (
                Feed(step=number, row=index),
                (0,),
                before.start + len(before.tokens),
            )
            assert row.output_index == before.output_index + 1 < self.by_id[row.request].max_tokens
        elif before.blocks is not None and row.blocks is not None and row.blocks[0] > 0:
            assert (row.start, row.tokens, row.blocks[0]) == (before.start, before.tokens, before.blocks[1])
        else:
            assert row.start == before.start + len(before.tokens)

    def _look_at_launches(self, step: Step) -> None:
        """Each block of each segment is passed once, in order, by all rows that it is due for."""
        passed: list[tuple[int, int]] = []
        by_row: list[list[tuple[int, int]]] = [[] for _ in step.rows]
        for launch in step.launches:
            blocks = [(launch.segment, block) for block in range(*(launch.blocks or (0, BLOCKS[launch.segment])))]
            passed += blocks
            for row in launch.rows:
                by_row[row] += blocks
        assert passed == sorted(set(passed)), "a block is launched twice, or too early"
        for row, got in zip(step.rows, by_row, strict=True):
            path = [(at, block) for at in self.run.own.chains[row.chain].segments for block in range(BLOCKS[at])]
            first, stop = row.blocks or (0, len(path))
            assert got == path[first:stop]
            self.parted += row.blocks is not None
            assert (row.request in step.parked) == (stop < len(path))
            assert stop == len(path) or not row.samples

    def _look_at_pages(self, row: Row) -> None:
        chain = self.run.own.chains[row.chain]
        isolation = self.by_id[row.request].isolation_group
        end = row.start + len(row.tokens)
        written = set(self._written(row))
        for table, group, domain in zip(row.pages, chain.groups, chain.domains, strict=True):
            assert len(table) == -(-end // self.run.own.groups[group].page_tokens), "a table covers the row exactly"
            for page in table:
                if page is not None and (group, page) not in written:
                    assert self.owners.get((group, page)) == (domain, isolation), "a page is read under another key"
            for page in written:
                if page[0] == group:
                    self.owners[page] = (domain, isolation)

    def _look_at_writes(self, step: Step) -> None:
        """No row writes where another row, of this step or one in flight, reads or writes."""
        rows = [(each.id, row) for each in (*self.in_flight, step) for row in each.rows]
        holders: dict[tuple[int, int], set[str]] = {}
        for _, row in rows:
            for table, group in zip(row.pages, self.run.own.chains[row.chain].groups, strict=True):
                for page in table:
                    if page is not None:
                        holders.setdefault((group, page), set()).add(row.request)
        for _, row in rows:
            for page in self._written(row):
                assert holders[page] == {row.request}, "a page is written while another row holds it"

    def _look_at_turn(self, row: Row) -> None:
        """Within a tenant, nobody is overtaken by a younger request that needs the same pages."""
        own = self.by_id[row.request]
        tenants, chains = self.run.own.tenants, self.run.own.chains
        for older in self.admitted[: self.admitted.index(own.id)]:
            other = self.by_id[older]
            is_peer = tenants[other.app] == tenants[own.app] and chains[other.chain].groups == chains[own.chain].groups
            is_peer = is_peer and self.run.own.turns.keys().isdisjoint(chains[other.chain].segments)
            assert not is_peer or older in self.started or older in self.run.ends, "a request was overtaken"

    def _written(self, row: Row):
        for table, group in zip(row.pages, self.run.own.chains[row.chain].groups, strict=True):
            size = self.run.own.groups[group].page_tokens
            for index in range(row.start // size, -(-(row.start + len(row.tokens)) // size)):
                assert table[index] is not None
                yield group, table[index]

    def _virtual(self, own) -> int:
        return len(self.run.own.chains[own.chain].virtual_tokens)

    def _judge(self) -> None:
        for own in self.requests:
            end, got, expected = self.run.ends[own.id], self.run.tokens[own.id], alone(own)
            if end.reason in ("length", "stop"):
                assert got == expected
                assert (end.reason == "stop") == (got[-1] in own.stop_token_ids)
            else:
                assert got == expected[: len(got)], "tokens of an unfinished request are a beginning of its answer"
            if end.reason == "error":
                assert INJECTED in end.message or "KV pages" in end.message
            assert not end.cached_tokens or (self._virtual(own) + end.cached_tokens) % PAGE == 0
            assert end.cached_tokens < len(own.prompt)
        assert self.run.held_pages() == 0, "pages are lost after the last request"
        gauges = self.run.scheduler.gauges()
        assert (gauges.running, gauges.waiting, gauges.steps_in_flight) == (0, 0, 0)
