"""Calls that go on submitting requests stay on the plan that they began with, whatever is swapped in meanwhile."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from blockc.diag import DiagnosticError
from blockc.plan import EmbeddingEntry
from blockc_runtime.request import EndEvent, Request, Sampling
from blockc_runtime.server.auth import Caller
from blockc_runtime.server.catalogue import Catalogue
from blockc_runtime.server.dispatch import ALONE
from blockc_runtime.server.engine_client import (
    EngineClient,
    EngineUnavailableError,
    PlanChangedError,
    QueueFullError,
    QueueLimits,
)
from blockc_runtime.server.engine_life import PlanFile
from blockc_runtime.server.metrics import Metrics
from blockc_runtime.server.supervisor import Supervisor
from blockc_runtime.wire.messages import Cancel, End, Loaded, Message, Submit
from tests.runtime.server.running import running


class World:
    """A client with an engine that only listens. ``past``: plans that were let go."""

    def __init__(self, limits: QueueLimits | None = None) -> None:
        self.metrics = Metrics()
        self.client = EngineClient(self.metrics, limits)
        self.sent: list[Message] = []
        self.past: list[int] = []
        self.client.on_past = self.past.append
        self.client.attach(ALONE, self.sent.append, 0)

    def submit(self, name: str, epoch: int, *, is_more: bool = False, tenant: str = "t") -> None:
        request = Request(
            id=name, app=0, chain=0, epoch=epoch, isolation_group="g", prompt=(5,), emitted=0, max_tokens=1,
            stop_token_ids=(), sampling=Sampling(),
        )  # fmt: skip
        self.client.submit([request], tenant=tenant, metrics=self.metrics.app("t", "a"), is_more=is_more)

    def end(self, name: str) -> None:
        self.client.receive(ALONE, End(events=(EndEvent(request=name, reason="stop", message="", cached_tokens=0),)))

    def submitted(self) -> Sequence[str]:
        return [message.request.id for message in self.sent if isinstance(message, Submit)]


def test_a_call_that_comes_with_more_ends_on_its_plan() -> None:
    world = World()
    world.submit("first", 0)
    with world.client.keeping(0):
        world.end("first")
        world.client.move_to(1)
        assert world.past == []
        with pytest.raises(PlanChangedError):
            world.submit("another call's", 0)
        world.submit("second", 0, is_more=True)
        world.end("second")
        assert world.submitted() == ["first", "second"]
        assert world.past == []
        assert world.client.lacking(ALONE) == []
    assert world.past == [0]


def test_a_swap_that_needs_the_room_waits_for_it() -> None:
    async def play() -> None:
        world = World()
        with world.client.keeping(0):
            world.client.hold()
            waiting = asyncio.create_task(world.client.idle())
            world.submit("second", 0, is_more=True)
            world.end("second")
            await asyncio.sleep(0)
            assert not waiting.done()
        await asyncio.wait_for(waiting, 1)

    asyncio.run(play())


def test_a_plan_that_no_engine_can_have_again_is_said() -> None:
    world = World()
    with world.client.keeping(0):
        world.client.move_to(1)
        world.client.detach(ALONE)
        world.client.attach(ALONE, world.sent.append, 1)
        assert world.client.lacking(ALONE) == [0]
        world.client.abandon(ALONE, 0, "it cannot be loaded again")
        with pytest.raises(EngineUnavailableError):
            world.submit("second", 0, is_more=True)
    assert world.past == [0]


def test_a_plan_that_nobody_needs_any_more_once_it_is_there_again_is_let_go() -> None:
    world = World()
    world.submit("first", 0)
    world.client.move_to(1)
    world.client.detach(ALONE)
    world.client.attach(ALONE, world.sent.append, 1)
    assert world.client.lacking(ALONE) == [0]
    world.client.finish("first")  # its client leaves while the engine loads that plan
    assert world.past == [0]
    world.client.open(ALONE, 0)
    assert world.past == [0, 0]
    assert world.client.lacking(ALONE) == []


def test_a_plan_that_went_while_another_was_loaded_again_stops_nothing() -> None:
    """The engine dies with requests of three plans; those of one leave while the one before it is loaded."""

    async def play() -> None:
        world = World()
        loaded: list[int] = []
        said: list[str] = []
        files = [PlanFile(epoch=epoch, path=Path("none"), digest="") for epoch in range(4)]
        supervisor = Supervisor(
            world.client, lambda socket, plan: (), plan=files[3], metrics=world.metrics, progress=said.append
        )

        async def load(plan: PlanFile, *, alone: bool = False) -> Loaded:
            loaded.append(plan.epoch)
            world.client.finish("1")
            return Loaded(
                epoch=plan.epoch, plan_digest="", kept_bytes=0, loaded_bytes=0, kv_groups=0, kv_kept=0, load_s=0.0,
                longest_turn_s=0.0,
            )  # fmt: skip

        world.client.on_past = supervisor.retire
        supervisor.load = load  # type: ignore[method-assign]
        supervisor._plans.update({file.epoch: file for file in files})
        for epoch in range(3):
            world.submit(str(epoch), epoch)
            world.client.move_to(epoch + 1)
        world.client.detach(ALONE)
        world.client.attach(ALONE, world.sent.append, 3)
        life: Any = None
        await supervisor._restore(life)
        await supervisor.stop()
        assert loaded == [0, 2]
        assert world.submitted() == ["0", "1", "2", "0", "2"]

    asyncio.run(play())


def test_a_folder_that_no_socket_can_be_made_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    metrics = Metrics()

    async def play() -> None:
        supervisor = Supervisor(
            EngineClient(metrics), lambda socket, plan: (), plan=PlanFile(epoch=0, path=tmp_path, digest=""),
            metrics=metrics, progress=print,
        )  # fmt: skip
        await supervisor.start()

    with pytest.raises(DiagnosticError) as refused:
        asyncio.run(play())
    assert [item.code.id for item in refused.value.diagnostics] == ["BC003"]
    assert list(folder.iterdir()) == []


def test_nobody_is_refused_for_what_others_have_waiting() -> None:
    """Two tenants fill the server; a third still gets its share of it, and no more."""
    world = World(QueueLimits(unfinished=8, unfinished_per_tenant=4))
    for number in range(8):
        world.submit(f"r{number}", 0, tenant="ab"[number % 2])
    for number in range(2):
        world.submit(f"c{number}", 0, tenant="c")
    for tenant in "abc":
        with pytest.raises(QueueFullError):
            world.submit("more", 0, tenant=tenant)
    world.submit("d", 0, tenant="d")


def test_the_engine_is_told_who_has_all_it_wants_and_who_gave_up() -> None:
    world = World()
    for name in ("found its stop string", "left"):
        world.submit(name, 0)
    world.client.finish("found its stop string")
    world.client.finish("left", "cancelled")
    told = [(message.request, message.is_done) for message in world.sent if isinstance(message, Cancel)]
    assert told == [("found its stop string", True), ("left", False)]


@pytest.mark.parametrize("route", ["/v1/embeddings", "/v1/classify"])
def test_texts_wait_while_a_swap_holds_requests_back(catalogue: Catalogue, route: str) -> None:
    """The engine of these tests knows no vectors: what it says shows that the texts reached it."""
    app = next(catalogue.visible(Caller(tenant=None)))
    own = {"/v1/embeddings": {"embedding": EmbeddingEntry(width=4, is_normalized=False)}, "/v1/classify": {}}[route]
    vectors = Catalogue((replace(app, labels=() if own else ("no", "yes"), **own),))
    with running(vectors) as server, ThreadPoolExecutor(1) as pool:
        client = server.server.client
        server.loop.call_soon_threadsafe(client.hold)
        body = {"model": app.model, "input": [[5, 6], [7]]}
        answer = pool.submit(httpx.post, f"{server.url}{route}", json=body, timeout=20)
        assert wait([answer], timeout=0.5).not_done
        server.loop.call_soon_threadsafe(client.let_in)
        assert answer.result().status_code == 500
        assert "the engine failed: it gave no" in answer.result().json()["error"]["message"]
