"""An engine with several plans: the null executor, real schedulers, driven frame by frame."""

from __future__ import annotations

import hashlib
import socket
import threading
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from blockc.plan import load_plan, write_plan
from blockc_runtime.channel import Channel
from blockc_runtime.engine import Engine, serve
from blockc_runtime.executor.null import next_token
from blockc_runtime.loading import Origin, load_epoch
from blockc_runtime.request import Request, Sampling
from blockc_runtime.wire.messages import End, Load, Loaded, LoadFailed, Ready, Retire, StatsQuery, Submit, Tokens
from tests.runtime.engine.test_engine import Peer
from tests.runtime.server import world

PAGES = 128  # of 16 tokens: as few as one sequence of full length needs


def origin(number: int, path: Path) -> Origin:
    return Origin(number=number, path=path, digest=hashlib.sha256(path.read_bytes()).hexdigest())


class Running:
    """An engine in a thread, with one plan; ``plans`` are files of plans for it."""

    def __init__(self, folder: Path, *, overlaps: bool, pages: tuple[int, int] = (PAGES, PAGES)) -> None:
        _, zoo = world.build(folder)
        self.plans = [
            world.build_more(folder, zoo, f"{name}.json", apps, pages=count)
            for name, apps, count in (
                ("stars", world.APPS, pages[0]), ("moons", world.APPS[::-1], pages[1]), ("suns", world.APPS[:1], PAGES),
            )
        ]  # fmt: skip
        for path in self.plans:
            plan = load_plan(path)
            batching = plan.batching.model_copy(update={"overlaps": overlaps})
            write_plan(plan.model_copy(update={"batching": batching}), path)
        ours, theirs = socket.socketpair()
        self.peer = Peer(theirs)
        load = partial(load_epoch, Namespace(executor="null", null_step_s=0.0, zoo=zoo))
        self.first = load(origin(0, self.plans[0]), before=None, alone=False).epoch
        self.engine = Engine(channel=Channel(ours), first=self.first, load=load)
        ready = Ready(plan_digest="d", capabilities=())
        serving = lambda: serve(Channel(ours), lambda: (self.engine, ready))  # noqa: E731
        self.thread = threading.Thread(target=serving, daemon=True)
        self.thread.start()
        assert self.peer.next() == ready

    def load(self, number: int, *, alone: bool = False) -> Loaded | LoadFailed:
        plan = origin(number, self.plans[number])
        self.peer.send(Load(epoch=number, plan=str(plan.path), plan_digest=plan.digest, alone=alone))
        while isinstance(answer := self.peer.next(), Tokens):
            assert not answer.events
        assert isinstance(answer, Loaded | LoadFailed)
        return answer


@pytest.fixture(params=[False, True], ids=["one at a time", "overlapping"])
def running(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    started = Running(tmp_path, overlaps=request.param)
    yield started
    started.peer.connection.close()
    started.thread.join(5)
    assert not started.thread.is_alive()


def request(id_: str, epoch: int, *, chain: int = 0, prompt: int = 3, count: int = 20) -> Request:
    return Request(
        id=id_, app=chain, chain=chain, isolation_group="g", prompt=tuple(range(4, 4 + prompt)), emitted=0,
        max_tokens=count, stop_token_ids=(), sampling=Sampling(), epoch=epoch,
    )  # fmt: skip


def said(asked: Request) -> list[int]:
    tokens = list(asked.prompt)
    for _ in range(asked.max_tokens):
        tokens.append(next_token(asked.chain, tokens, world.vocab_size()))
    return tokens[len(asked.prompt) :]


def test_requests_go_to_the_plan_that_they_name(running: Running):
    assert isinstance(running.load(1), Loaded)
    asked = [request("old", 0, chain=2), request("new", 1, chain=1), request("unknown", 7)]
    running.peer.send(*(Submit(request=one) for one in asked))
    tokens, reasons, _ = running.peer.until_ends("old", "new", "unknown")
    assert (tokens["old"], tokens["new"]) == (said(asked[0]), said(asked[1]))
    assert reasons == {"old": "length", "new": "length", "unknown": "error"}


def test_a_plan_goes_when_its_last_request_has_ended(running: Running):
    assert isinstance(running.load(1), Loaded)
    asked, late = request("old", 0, count=200), request("late", 0)
    running.peer.send(Submit(request=asked), Retire(epoch=0), Submit(request=late))
    tokens, reasons, _ = running.peer.until_ends("old", "late")
    assert tokens["old"] == said(asked)
    assert reasons == {"old": "length", "late": "error"}
    running.peer.send(StatsQuery())
    running.peer.next()
    assert list(running.engine._epochs) == [1]


def test_what_began_first_gets_the_pages_that_both_need(running: Running):
    """Each grows to more than half of the pages, and neither scheduler can take any from the other."""
    loaded = running.load(1)
    assert isinstance(loaded, Loaded)
    assert (loaded.kv_groups, loaded.kv_kept) == (1, 1)
    asked = [request("old", 0, prompt=900, count=400), request("new", 1, chain=1, prompt=900, count=400)]
    running.peer.send(*(Submit(request=one) for one in asked))
    tokens, reasons, _ = running.peer.until_ends("old", "new")
    assert [tokens["old"], tokens["new"]] == list(map(said, asked))
    assert set(reasons.values()) == {"length"}
    assert running.first.goes_first
    running.peer.send(StatsQuery())
    stats = running.peer.next()
    assert stats.counts.preemptions >= 2
    assert stats.pages[0].held == 0


def test_what_is_no_load(running: Running):
    failed = running.load(0)
    assert isinstance(failed, LoadFailed)
    running.peer.send(Submit(request=request("a", 0, count=1000)))
    running.peer.next()  # its first token
    plan = origin(2, running.plans[2])
    for digest, alone in (("0" * 64, False), (plan.digest, True)):
        running.peer.send(Load(epoch=2, plan=str(plan.path), plan_digest=digest, alone=alone))
    failures: list[LoadFailed] = []
    while len(failures) < 2:
        if isinstance(message := running.peer.next(), LoadFailed):
            failures.append(message)
    assert {failure.code for failure in failures} == {"BC901", "BC999"}


def test_in_the_place_of_another(running: Running):
    loaded = running.load(2, alone=True)
    assert isinstance(loaded, Loaded)
    running.peer.send(Retire(epoch=0))
    asked = request("a", 2)
    running.peer.send(Submit(request=asked))
    assert running.peer.until_ends("a")[0]["a"] == said(asked)


def cached(peer: Peer, request_id: str) -> int:
    """How many tokens of its prompt a request found, once it has ended."""
    while True:
        if isinstance(message := peer.next(), End):
            for end in message.events:
                if end.request == request_id:
                    return end.cached_tokens


@pytest.mark.parametrize(("session", "found"), [("s", 160), ("", 0)])
def test_a_session_that_pauses_keeps_its_pages_over_a_swap(running: Running, session: str, found: int):
    """It pauses under one plan, others need every page under the next, and its next request finds what it left."""
    first = replace(request("first", 0, prompt=160, count=2), session=session, keep_s=600.0)
    running.peer.send(Submit(request=first))
    running.peer.until_ends("first")
    assert isinstance(running.load(1), Loaded)
    running.peer.send(Retire(epoch=0), StatsQuery())
    stats = running.peer.next()
    assert (stats.sessions, stats.sessions_lost) == (1 if session else 0, 0)
    for number in range(4):
        other = replace(
            request(f"other {number}", 1, chain=1, prompt=900, count=2), isolation_group="other",
            prompt=tuple(range(300 + number, 1200 + number)),
        )  # fmt: skip
        running.peer.send(Submit(request=other))
        running.peer.until_ends(other.id)
    running.peer.send(Submit(request=replace(request("next", 1, prompt=161, count=2), session=session)))
    assert cached(running.peer, "next") == found


def test_a_session_of_groups_that_begin_empty_is_lost(tmp_path: Path):
    started = Running(tmp_path, overlaps=True, pages=(PAGES, PAGES + 8))
    try:
        paused = replace(request("first", 0, prompt=160, count=2), session="s", keep_s=600.0)
        started.peer.send(Submit(request=paused))
        started.peer.until_ends("first")
        assert isinstance(started.load(1), Loaded)
        seen = []
        for message in (Retire(epoch=0), StatsQuery()):
            started.peer.send(message, StatsQuery())
            stats = started.peer.next()
            seen.append((stats.sessions, stats.sessions_lost))
        assert seen == [(1, 0), (0, 1)]
    finally:
        started.peer.connection.close()
        started.thread.join(5)
