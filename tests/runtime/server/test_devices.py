"""Plans of several devices: an engine for each, requests where they end first, and none lost with an engine."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from blockc.diag import DiagnosticError
from blockc.plan import load_plan
from blockc_runtime.request import EndEvent, Request, Sampling, TokensEvent
from blockc_runtime.server.dispatch import dispatch_of, on_node
from blockc_runtime.server.engine_client import EngineClient
from blockc_runtime.server.engine_link import EngineState, EngineUnavailableError
from blockc_runtime.server.metrics import Metrics
from blockc_runtime.server.supervisor import engine_environment
from blockc_runtime.wire.messages import Cancel, End, Message, Stats, StatsQuery, StepLoad, Submit, Tokens
from tests.runtime.server.running import RunningServer
from tests.runtime.server.test_swap import Plans, Stream, apply, ask, plans, said, swapping
from tests.support.processes import eventually

__all__ = ["plans"]

APPS = (("acme", "chat"), ("acme", "code"), ("birch", "chat"))
# The first app's chain is the first of both parts, the others' the second of theirs.
WAYS = ((0, 1), (0,), (1,))
PROMPT = (10, 11, 12)


@pytest.fixture(scope="module")
def pair(plans: Plans) -> Path:
    return plans.more("pair.json", APPS, ways=WAYS)


class World:
    """A client whose engines only listen."""

    def __init__(self, plan: Path) -> None:
        self.metrics = Metrics()
        self.client = EngineClient(self.metrics, dispatch=dispatch_of(load_plan(plan)))
        self.sent: dict[int, list[Message]] = {0: [], 1: []}
        for engine in self.sent:
            self.attach(engine)

    def attach(self, engine: int) -> None:
        self.client.attach(engine, self.sent[engine].append, 0)

    def submit(self, name: str, app: int = 0, prompt: Sequence[int] = PROMPT) -> None:
        request = Request(
            id=name, app=app, chain=app, isolation_group="g", prompt=tuple(prompt), emitted=0, max_tokens=9,
            stop_token_ids=(), sampling=Sampling(),
        )  # fmt: skip
        self.client.submit([request], tenant="t", metrics=self.metrics.app("t", "a"))

    def emit(self, engine: int, name: str, *tokens: int) -> None:
        load = StepLoad(rows=1, tokens=1, launches=1, chains=1)
        event = TokensEvent(request=name, tokens=tokens, logprobs=())
        self.client.receive(engine, Tokens(step=0, load=load, started=(name,), events=(event,)))

    def end(self, engine: int, name: str) -> None:
        event = EndEvent(request=name, reason="stop", message="", cached_tokens=0)
        self.client.receive(engine, End(events=(event,)))

    def unfinished(self) -> set[str]:
        return set(self.client._tracked)

    def at(self, engine: int) -> dict[str, Request]:
        """What an engine was given last of each request."""
        return {sent.request.id: sent.request for sent in self.sent[engine] if isinstance(sent, Submit)}


def test_requests_are_spread_and_each_engine_knows_its_own_numbers(pair: Path) -> None:
    world = World(pair)
    for number in range(6):
        world.submit(f"hot {number}")
    world.submit("code", 1)
    world.submit("birch", 2)
    assert [len(world.at(engine)) for engine in (0, 1)] == [4, 4]
    assert (world.at(0)["code"].chain, world.at(0)["code"].app) == (1, 1)
    assert (world.at(1)["birch"].chain, world.at(1)["birch"].app) == (1, 1)
    assert {request.chain for engine in (0, 1) for name, request in world.at(engine).items() if "hot" in name} == {0}


def test_what_goes_on_goes_where_its_beginning_is(pair: Path) -> None:
    world = World(pair)
    long = list(range(1000, 1000 + 400))
    world.submit("first", prompt=long)
    (engine,) = (engine for engine in (0, 1) if "first" in world.at(engine))
    world.emit(engine, "first", 5, 6)
    world.end(engine, "first")
    for number in range(3):
        world.submit(f"turn {number}", prompt=[*long, 5, 6, *range(40 * number)])
    assert {f"turn {number}" for number in range(3)} <= world.at(engine).keys()


def test_who_loses_its_engine_goes_on_with_another_at_once(pair: Path) -> None:
    world = World(pair)
    for name, app in (("a", 0), ("b", 0), ("code", 1)):
        world.submit(name, app)
    (name,) = world.at(0).keys() - {"code"}
    world.emit(0, name, 21, 22)
    world.client.detach(0)
    assert world.at(1)[name].prompt == (*PROMPT, 21, 22)
    assert world.at(1)[name].emitted == 2
    assert "code" not in world.at(1)
    world.submit("c")
    assert "c" in world.at(1)
    world.sent[0].clear()
    world.attach(0)
    assert world.at(0).keys() == {"code"}
    world.client.finish(name, "cancelled")
    assert world.sent[1][-1] == Cancel(request=name)
    assert world.client.state is EngineState.READY


def test_an_end_that_was_lost_with_an_engine_is_made_good(pair: Path) -> None:
    world = World(pair)
    for name in "abcd":
        world.submit(name)
    done, other = (name for name in "abcd" if name in world.at(0))
    world.emit(0, done, *range(20, 29))  # all that it asked for
    world.client.detach(0)
    assert world.unfinished() == set("abcd") - {done}
    assert other in world.at(1)


def test_the_first_engine_that_is_there_again_takes_what_both_have_lost(pair: Path) -> None:
    world = World(pair)
    for name in "abcd":
        world.submit(name)
    world.client.detach(1)
    world.client.detach(0)
    assert world.client.state is EngineState.STARTING
    world.submit("e")
    world.sent[1].clear()
    world.attach(1)
    assert world.at(1).keys() == set("ace")
    world.sent[0].clear()
    world.attach(0)
    assert world.at(0).keys() == set("bd")  # two engines died on them: one of them may be why


def test_a_device_without_an_engine_ends_what_only_it_can_do(pair: Path) -> None:
    world = World(pair)
    for name, app in (("a", 0), ("b", 0), ("code", 1)):
        world.submit(name, app)
    world.client.give_up(0)
    assert {"a", "b"} <= world.at(1).keys()
    assert world.client.state is EngineState.READY
    with pytest.raises(EngineUnavailableError):
        world.submit("more code", 1)
    world.submit("birch", 2)
    for name in ("a", "b", "birch"):
        world.end(1, name)
    world.client.give_up(1)
    assert world.client.state is EngineState.FAILED
    with pytest.raises(EngineUnavailableError):
        world.submit("c")


def test_nobody_waits_for_a_device_that_has_given_up(pair: Path) -> None:
    """Whatever the order in which two engines die and give up: who can be answered is, and all others end."""
    world = World(pair)
    for name in "abc":
        world.submit(name)
    world.client.detach(0)
    world.client.detach(1)
    world.client.give_up(0)
    world.submit("d")  # one of its engines is starting
    assert world.unfinished() == set("abcd")
    world.sent[1].clear()
    world.attach(1)
    assert world.at(1).keys() == set("abcd")
    world.client.detach(1)
    world.client.give_up(1)
    assert world.unfinished() == set()


def test_what_kills_engines_does_not_go_through_all(pair: Path) -> None:
    world = World(pair)
    world.submit("killer")
    (first,) = (engine for engine in (0, 1) if "killer" in world.at(engine))
    other = 1 - first
    for engine in (first, other, other, other):
        assert "killer" in world.at(engine)
        for sent in world.sent.values():
            sent.clear()
        world.client.detach(engine)
        world.attach(engine)
    assert world.unfinished() == {"killer"}
    world.client.detach(other)
    assert world.unfinished() == set()


def test_a_plan_that_one_engine_cannot_have_again_is_answered_by_the_other(pair: Path) -> None:
    world = World(pair)
    for name in "ab":
        world.submit(name)
    world.client.move_to(1, dispatch_of(load_plan(pair)))
    lost = next(name for name in "ab" if name in world.at(0))
    world.client.detach(0)
    world.client.attach(0, world.sent[0].append, 1)
    assert world.client.lacking(0) == [0]
    world.client.abandon(0, 0, "it cannot be loaded again")
    assert lost in world.at(1)
    assert world.unfinished() == set("ab")


def test_engines_that_do_not_answer_leave_figures_of_others(pair: Path) -> None:
    async def play() -> None:
        world = World(pair)
        for _ in range(3):
            asking = asyncio.create_task(world.client.stats_within(0.05))
            await asyncio.sleep(0)
            world.client.receive(1, Stats(unfinished=7, steps=0, pages=()))
            (own,) = await asking
            assert (own.device, own.stats.unfinished) == ("local/d1", 7)
        asked = [sent for sent in world.sent[0] if isinstance(sent, StatsQuery)]
        assert len(asked) == 1  # it will answer when it can
        asking = asyncio.create_task(world.client.stats_within(5))
        await asyncio.sleep(0)
        world.client.receive(1, Stats(unfinished=7, steps=0, pages=()))
        world.client.detach(0)
        assert len(await asking) == 1

    asyncio.run(play())


def test_a_server_is_ready_when_all_engines_have_been(pair: Path) -> None:
    client = EngineClient(Metrics(), dispatch=dispatch_of(load_plan(pair)))
    for engine, state in ((1, EngineState.STARTING), (0, EngineState.READY)):
        client.attach(engine, lambda message: None, 0)
        assert client.state is state
    client.detach(1)
    assert client.state is EngineState.READY


def test_it_is_ready_with_those_that_are_left_if_one_fails_while_it_starts(pair: Path) -> None:
    client = EngineClient(Metrics(), dispatch=dispatch_of(load_plan(pair)))
    client.attach(0, lambda message: None, 0)
    client.give_up(0)
    client.attach(1, lambda message: None, 0)
    assert client.state is EngineState.READY


def test_of_several_nodes_one_is_served(plans: Plans, pair: Path) -> None:
    plan = load_plan(pair)
    far = plan.devices[1].model_copy(update={"address": "other/d0", "node": "other"})
    plan = plan.model_copy(update={"devices": (plan.devices[0], far), "nodes": ("local", "other")})
    with pytest.raises(DiagnosticError, match=r"devices of 2 nodes \(local, other\)"):
        on_node(plan, None)
    with pytest.raises(DiagnosticError, match="no device of a node `far`"):
        on_node(plan, "far")
    for node, apps in (("local", [0, 1]), ("other", [0, 2])):
        own = on_node(plan, node)
        assert [app.address for app in own.apps] == [plan.apps[app].address for app in apps]
        assert dispatch_of(own).engines == (0,)
    assert on_node(load_plan(pair), "local") == load_plan(pair)


def two(server: RunningServer) -> dict[int, int]:
    assert server.server.fleet is not None
    return server.server.fleet.engine_pids


def test_answers_come_from_both_and_outlive_either(plans: Plans, pair: Path) -> None:
    with swapping(plans, plan=pair, step_s=0.01) as server, ThreadPoolExecutor(8) as pool:
        streams = [Stream(server, app, 150) for app in ["acme/chat"] * 4 + ["acme/code", "birch/chat"]]
        metrics = httpx.get(f"{server.url}/metrics").text
        for device in ("local/d0", "local/d1"):
            assert f'blockc:engine_up{{device="{device}"}} 1.0' in metrics
            assert f'blockc:kv_pages{{device="{device}",group="0"}}' in metrics
        unfinished = [own.stats.unfinished for own in server.call(server.server.client.stats())]
        assert unfinished == [3, 3]
        for engine in (0, 1):
            server.kill_engine(engine)
            more = [pool.submit(ask, server, "acme/chat") for _ in range(4)]
            assert {answer.result() for answer in more} == {said(0, PROMPT, 20)}
            assert httpx.get(f"{server.url}/ready").status_code == 200
            assert eventually(lambda: len(server.call(server.server.client.stats())) == 2)
        for stream, chain in zip(streams, (0, 0, 0, 0, 1, 1), strict=True):
            assert stream.tokens() == said(chain, PROMPT, 150)
        assert any(line.startswith("local/d1: the engine ended") for line in server.progress)


def test_an_engine_that_hangs_holds_up_its_own_only(plans: Plans, pair: Path) -> None:
    with swapping(plans, plan=pair) as server:
        os.kill(pid := server.engine_pid(0), signal.SIGSTOP)
        try:
            assert ask(server, "birch/chat") == said(1, PROMPT, 20)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert ask(server, "acme/code") == said(1, PROMPT, 20)


def test_devices_come_and_go_with_plans(plans: Plans, pair: Path) -> None:
    """What began with a plan ends on it, on the devices of that plan; then their engines end."""
    other = plans.more("swapped.json", APPS, ways=((1,), (1,), (1,)))
    with swapping(plans, plan=plans.stars) as server:
        assert list(two(server)) == [0]
        for plan, engines, chains in ((pair, [0, 1], (0, 1, 1)), (other, [1], (0, 1, 2)), (pair, [0, 1], (0, 1, 1))):
            began = {0: 0, 1: 1, 2: 2} if list(two(server)) == [0] or plan is pair else {0: 0, 1: 1, 2: 1}
            streams = [Stream(server, f"{tenant}/{app}", 150) for tenant, app in APPS]
            report = apply(server, plan)
            assert report.json()["swapped"], report.text
            for (tenant, app), chain in zip(APPS, chains, strict=True):
                assert ask(server, f"{tenant}/{app}") == said(chain, PROMPT, 20)
            for number, stream in enumerate(streams):
                assert stream.tokens() == said(began[number], PROMPT, 150)
            assert eventually(lambda engines=engines: list(two(server)) == engines)
        assert not [line for line in server.progress if "Traceback" in line or "ended" in line]


def test_an_engine_that_cannot_have_its_part_leaves_all_as_they_were(plans: Plans, pair: Path) -> None:
    """Both are told to load; one is gone before it has."""
    with swapping(plans, plan=plans.stars) as server, ThreadPoolExecutor(1) as pool:
        assert apply(server, pair).json()["swapped"]
        before = Stream(server, "acme/code", 600)
        os.kill(server.engine_pid(1), signal.SIGSTOP)
        applied = pool.submit(apply, server, plans.more("again.json", APPS, ways=((0, 1), (1,), (0,))))
        time.sleep(0.3)
        server.kill_engine(1)
        assert applied.result().status_code == 503
        assert ask(server, "birch/chat") == said(1, PROMPT, 20)
        assert before.tokens() == said(1, PROMPT, 600)
        assert httpx.get(f"{server.url}/plan").content == pair.read_bytes()
        assert apply(server, plans.moons).json()["swapped"]


def crowded(plans: Plans) -> tuple[Path, Path]:
    """Two plans whose pages no device holds at once."""
    page_bytes = load_plan(plans.stars).kv_groups[0].page_bytes
    sizes = {"memory_bytes": 16384 * page_bytes, "ways": WAYS}
    return (
        plans.more("pair-first.json", APPS, pages=16384, **sizes),
        plans.more("pair-other.json", APPS, pages=16000, **sizes),
    )


def test_a_swap_that_does_not_fit_beside_waits_on_all_devices(plans: Plans) -> None:
    first, other = crowded(plans)
    with swapping(plans, plan=first) as server, ThreadPoolExecutor(10) as pool:
        before = Stream(server, "acme/code", 200)
        applied = pool.submit(apply, server, other)
        assert eventually(lambda: any("new requests wait" in line for line in server.progress))
        waiting = [pool.submit(ask, server, app) for app in ("acme/chat", "acme/code", "birch/chat")]
        report = applied.result().json()
        assert (report["beside"], report["swapped"]) == (False, True)
        assert before.tokens() == said(1, PROMPT, 200)
        assert [answer.result() for answer in waiting] == [said(chain, PROMPT, 20) for chain in (0, 1, 1)]


@pytest.mark.parametrize(
    ("visible", "engine", "seen"),
    [(None, 2, "2"), ("3,5", 1, "5"), ("GPU-a,GPU-b", 0, "GPU-a"), ("3", 1, ""), ("", 0, "")],
)
def test_an_engine_sees_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, engine: int, seen: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert engine_environment(engine, gpus=True)["CUDA_VISIBLE_DEVICES"] == seen
    assert engine_environment().get("CUDA_VISIBLE_DEVICES") == visible


def test_engines_share_the_cores_unless_somebody_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "OMP_NUM_THREADS" not in engine_environment()
    assert engine_environment(cpus=3)["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert engine_environment(cpus=3)["OMP_NUM_THREADS"] == "7"


def test_an_engine_that_dies_while_all_load_in_the_place_of_the_plan_before(plans: Plans) -> None:
    """The other has given the plan before up, and gets it again."""
    first, other = crowded(plans)
    with swapping(plans, plan=first) as server, ThreadPoolExecutor(4) as pool:
        before = Stream(server, "acme/code", 300)
        pids = two(server)
        applied = pool.submit(apply, server, other)
        assert eventually(lambda: any("new requests wait" in line for line in server.progress))
        os.kill(pids[1], signal.SIGSTOP)
        assert before.tokens() == said(1, PROMPT, 300)
        time.sleep(0.3)
        os.kill(pids[1], signal.SIGKILL)
        assert applied.result().status_code == 503
        for app, chain in zip(("acme/chat", "acme/code", "birch/chat"), (0, 1, 1), strict=True):
            assert ask(server, app) == said(chain, PROMPT, 20)
        assert eventually(lambda: set(two(server).values()).isdisjoint(pids.values()))
        assert httpx.get(f"{server.url}/plan").content == first.read_bytes()


def test_a_plan_that_an_engine_has_again_too_late_goes_at_once(plans: Plans, pair: Path) -> None:
    """It had passed for everybody while an engine was loading it again."""
    with swapping(plans, plan=plans.stars) as server:
        fleet = server.server.fleet
        assert fleet is not None
        told: list[int] = []
        fleet._supervisors[0].retire = told.append  # type: ignore[method-assign]
        fleet._on_past(99)
        assert told == [99]
