"""The engine where steps overlap: a step is submitted before the one ahead of it is collected."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockc_runtime.executor.null import NullExecutor
from blockc_runtime.request import Request
from blockc_runtime.step import Step, StepResult
from blockc_runtime.wire.messages import Cancel, Loaded, Retire, Stats, StatsQuery, Submit, Tokens
from tests.runtime.engine.test_epochs import Running, request, said


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    started = Running(tmp_path, overlaps=True)
    yield started
    started.peer.connection.close()
    started.thread.join(5)
    assert not started.thread.is_alive()


def stopping(id_: str, place: int, **options: int) -> Request:
    """A request whose answer stops at the first token like the output of that index."""
    plain = request(id_, 0, **options)
    return Request(
        **{name: getattr(plain, name) for name in plain.__slots__} | {"stop_token_ids": (said(plain)[place],)}
    )


def stats(running: Running) -> Stats:
    running.peer.send(StatsQuery())
    while not isinstance(message := running.peer.next(), Stats):
        pass
    return message


def test_two_steps_are_in_flight(running: Running, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    submit, collect = NullExecutor.submit, NullExecutor.collect

    def submitted(self: NullExecutor, step: Step) -> None:
        calls.append("submit")
        submit(self, step)

    def collected(self: NullExecutor) -> StepResult:
        calls.append("collect")
        return collect(self)

    monkeypatch.setattr(NullExecutor, "submit", submitted)
    monkeypatch.setattr(NullExecutor, "collect", collected)
    asked = request("a", 0, count=4)
    running.peer.send(Submit(request=asked))
    tokens, _, frames = running.peer.until_ends("a")
    assert tokens["a"] == said(asked)
    assert frames == 4
    assert calls == ["submit", "submit", "collect", "submit", "collect", "submit", "collect", "collect"]
    assert (stats(running).steps, stats(running).counts.overlapped) == (4, 3)


def test_answers_that_stop_are_those_of_an_engine_of_one_step(running: Running):
    asked = [stopping(f"r{place}", place, chain=place % 3, prompt=3 + place) for place in range(12)]
    running.peer.send(*(Submit(request=one) for one in asked))
    tokens, reasons, _ = running.peer.until_ends(*(one.id for one in asked))
    for one in asked:
        whole = said(one)
        assert tokens[one.id] == whole[: whole.index(one.stop_token_ids[0]) + 1]
    assert set(reasons.values()) == {"stop"}
    assert stats(running).pages[0].held == 0


def test_a_name_is_free_again_when_its_request_has_ended(running: Running):
    """Though a step that was issued before that may have a row of it still."""
    for place in range(6):
        own = stopping("again", place)
        running.peer.send(Submit(request=own))
        tokens, reasons, _ = running.peer.until_ends("again")
        assert reasons["again"] == "stop"
        assert tokens["again"][-1] == own.stop_token_ids[0]
    assert stats(running).unfinished == 0


def test_cancelled_under_two_steps(running: Running):
    running.peer.send(Submit(request=request("a", 0, count=1500)), Submit(request=request("b", 0, count=30)))
    while not (isinstance(message := running.peer.next(), Tokens) and len(message.events) == 2):
        pass
    running.peer.send(Cancel(request="a"))
    reasons: dict[str, str] = {}
    while len(reasons) < 2:
        message = running.peer.next()
        if isinstance(message, Tokens):
            assert all(event.request not in reasons for event in message.events), "a token after the end"
        else:
            reasons |= {end.request: end.reason for end in message.events}
    assert reasons == {"a": "cancelled", "b": "length"}
    assert stats(running).pages[0].held == 0


def test_a_plan_is_put_in_the_place_of_one_whose_last_step_is_in_flight(running: Running):
    for place in range(4):
        running.peer.send(Submit(request=stopping(f"r{place}", place)))
        running.peer.until_ends(f"r{place}")
    assert isinstance(running.load(2, alone=True), Loaded)
    running.peer.send(Retire(epoch=0))
    asked = request("a", 2)
    running.peer.send(Submit(request=asked))
    assert running.peer.until_ends("a")[0]["a"] == said(asked)


def test_with_two_plans_steps_take_turns_and_it_is_said_why(running: Running):
    assert isinstance(running.load(1), Loaded)
    asked = [request("old", 0, count=20), request("new", 1, count=20)]
    running.peer.send(*(Submit(request=one) for one in asked))
    tokens, _, _ = running.peer.until_ends("old", "new")
    assert [tokens["old"], tokens["new"]] == list(map(said, asked))
    found = stats(running)
    assert found.counts.overlapped == 0
    assert found.counts.waits == {"plans": found.steps}
