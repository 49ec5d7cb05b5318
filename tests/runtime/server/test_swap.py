"""Plans swapped while serving: the engine proper on the null executor, whose tokens tell which plan made them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import pytest

from blockc.ir.canonical import canonical_json, json_digest
from blockc.plan import load_plan
from blockc.zoo import Zoo
from blockc_runtime.executor.null import next_token
from blockc_runtime.server.auth import KeyRing
from blockc_runtime.server.catalogue import load_catalogue
from blockc_runtime.server.engine_link import EngineState
from blockc_runtime.server.keys_file import load_keys
from tests.conftest import Promised
from tests.runtime.server import world
from tests.runtime.server.running import RunningServer, running
from tests.support.processes import eventually

STARS = (("acme", "chat"), ("acme", "code"), ("birch", "chat"))
# The same apps on each other's models, one that went and one that came.
MOONS = (("birch", "chat"), ("acme", "chat"), ("cedar", "chat"))
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Plans:
    zoo: Path
    stars: Path
    moons: Path
    folder: Path

    def more(self, name: str, apps: Sequence[tuple[str, str]] = MOONS, **options: Any) -> Path:
        return world.build_more(self.folder, self.zoo, name, apps, **options)


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    folder = tmp_path_factory.mktemp("plans")
    stars, zoo = world.build(folder)
    return Plans(zoo, stars, world.build_more(folder, zoo, "moons.json", MOONS), folder)


def swapping(plans: Plans, *, step_s: float = 0.002, plan: Path | None = None, **options: Any):
    plan = plan or plans.stars
    catalogue = load_catalogue(load_plan(plan), Zoo(plans.zoo), lambda line: None)
    return running(catalogue, plan=plan, zoo=plans.zoo, engine_options=("--null-step-s", str(step_s)), **options)


@pytest.fixture
def server(plans: Plans) -> Iterator[RunningServer]:
    with swapping(plans) as server:
        yield server


def apply(server: RunningServer, plan: Path | bytes, **headers: str) -> httpx.Response:
    data = plan if isinstance(plan, bytes) else plan.read_bytes()
    return httpx.post(f"{server.url}/admin/plan", content=data, headers={**JSON, **headers}, timeout=60)


@lru_cache(maxsize=4096)
def said(chain: int, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(chain, tokens, world.vocab_size()))
    return tuple(tokens[len(prompt) :])


def body(model: str, prompt: Sequence[int] = (10, 11, 12), count: int = 20, **fields: Any) -> dict[str, Any]:
    return {
        "model": model, "prompt": list(prompt), "max_tokens": count, "temperature": 0, "ignore_eos": True,
        "return_token_ids": True, **fields,
    }  # fmt: skip


def ask(server: RunningServer, model: str, **options: Any) -> tuple[int, ...]:
    answer = httpx.post(f"{server.url}/v1/completions", json=body(model, **options), timeout=30)
    assert answer.status_code == 200, answer.text
    return tuple(answer.json()["choices"][0]["token_ids"])


class Stream(threading.Thread):
    """A stream that is read to its end."""

    def __init__(self, server: RunningServer, model: str, count: int) -> None:
        super().__init__()
        self.began, self.ids, self.error = threading.Event(), [], None
        self._url, self._body = f"{server.url}/v1/completions", body(model, count=count, stream=True)
        self.start()
        assert self.began.wait(20)

    def run(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        self.error = event["error"]
                    else:
                        self.ids += event["choices"][0].get("token_ids", [])
                        self.began.set()

    def tokens(self) -> tuple[int, ...]:
        self.join(60)
        assert self.error is None
        return tuple(self.ids)


async def one(client: httpx.AsyncClient, draw: random.Random, models: Sequence[str]) -> str | None:
    """An answer to chance: None if it is whole and of one plan, else what is wrong."""
    model = draw.choice(models)
    prompt = tuple(draw.randrange(4, 260) for _ in range(draw.choice((3, 40))))
    count = draw.choice((2, 12, 60))
    fields = body(model, prompt, count, stream=draw.random() < 0.5)
    ids: list[int] = []
    async with client.stream("POST", "/v1/completions", json=fields) as answer:
        if answer.status_code != 200:
            return f"{model}: {answer.status_code} {(await answer.aread())[:200]!r}"
        async for line in answer.aiter_lines():
            if not fields["stream"]:
                ids += json.loads(line)["choices"][0]["token_ids"]
            elif line.startswith("data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    return f"{model}: {event['error']}"
                ids += event["choices"][0].get("token_ids", [])
    tenant, _, app = model.partition("/")
    chains = [apps.index((tenant, app)) for apps in (STARS, MOONS)]
    return None if tuple(ids) in {said(chain, prompt, count) for chain in chains} else f"{model}: of no one plan"


async def swaps_under_load(
    server: RunningServer, plans: Plans, *, swaps: int, in_flight: int, seed: int, kill: bool = False
) -> tuple[list[str], list[dict[str, Any]], int]:
    """What was wrong, the swaps' answers, and how many answers there were."""
    both = ["acme/chat", "birch/chat"]  # apps of both plans, on other models in each
    wrong: list[str] = []
    reports: list[dict[str, Any]] = []
    answered = 0
    over = False

    async def worker(number: int) -> None:
        nonlocal answered
        draw = random.Random(f"{seed}/{number}")
        while not over:
            problem = await one(client, draw, both)
            answered += 1
            if problem is not None:
                wrong.append(problem)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
        workers = [asyncio.create_task(worker(number)) for number in range(in_flight)]
        draw = random.Random(seed)
        target = plans.moons
        while len(reports) < swaps:
            await asyncio.sleep(draw.random() * 0.1)
            if kill and draw.random() < 0.4:
                asyncio.get_running_loop().call_later(draw.random() * 0.05, killed, server)
            answer = await client.post("/admin/plan", content=target.read_bytes(), headers=JSON)
            if kill and answer.status_code == 503:  # nothing has changed: another try
                while server.server.client.state is not EngineState.READY:
                    assert server.server.client.state is EngineState.STARTING
                    await asyncio.sleep(0.05)
                continue
            assert answer.status_code == 200, answer.text
            reports.append(answer.json())
            target = plans.stars if target == plans.moons else plans.moons
        over = True
        await asyncio.gather(*workers)
    return wrong, reports, answered


def killed(server: RunningServer) -> None:
    """Kill an engine that serves: three that never do would be the last."""
    if server.server.client.state is EngineState.READY:
        with contextlib.suppress(ProcessLookupError, KeyError):
            server.kill_engine()


@pytest.mark.promise("plan swap")
@pytest.mark.parametrize("swaps", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_swaps_with_32_in_flight(server: RunningServer, plans: Plans, swaps: int, promised: Promised):
    wrong, reports, answered = asyncio.run(swaps_under_load(server, plans, swaps=swaps, in_flight=32, seed=swaps))
    assert wrong == []
    assert answered > 32
    assert all(report["swapped"] and report["beside"] for report in reports)
    assert eventually(lambda: server.stats().unfinished == 0)
    free = server.stats().pages[0]
    assert free.held == 0
    metrics = httpx.get(f"{server.url}/metrics").text
    assert f'blockc:plan_swaps_total{{outcome="swapped"}} {swaps}.0' in metrics
    assert "num_requests_running" in metrics
    longest_ms = max(report["pause_s"] for report in reports) * 1000
    promised(
        "swaps with 32 in flight", "100 swaps: 0 failed requests, no answer mixes plans",
        f"{swaps} swaps, {answered:,} answers: 0 failed, 0 of two plans; a pause of {longest_ms:.1f} ms at most",
        kept=swaps >= 100,
    )  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 11))])
def test_swaps_with_engines_killed_at_times_by_chance(plans: Plans, seed: int):
    with swapping(plans) as server:
        wrong, _, answered = asyncio.run(swaps_under_load(server, plans, swaps=6, in_flight=8, seed=seed, kill=True))
        assert wrong == []
        assert answered > 8
        assert eventually(lambda: server.stats().unfinished == 0)


def test_everything_follows_the_new_plan(server: RunningServer, plans: Plans):
    before = Stream(server, "acme/code", 400)
    models = lambda: [entry["id"] for entry in httpx.get(f"{server.url}/v1/models").json()["data"]]  # noqa: E731
    assert models() == ["acme/chat", "acme/code", "birch/chat"]
    report = apply(server, plans.moons).json()
    assert report["apps"] == {
        "came": ["cedar/chat"], "gone": ["acme/code"], "changed": ["acme/chat", "birch/chat"],
    }  # fmt: skip
    assert models() == ["birch/chat", "acme/chat", "cedar/chat"]
    served = httpx.get(f"{server.url}/plan")
    assert served.content == plans.moons.read_bytes()
    assert served.headers["etag"] == f'"{report["plan"]}"'
    assert f'blockc:plan_info{{digest="{report["plan"]}"}} 1.0' in httpx.get(f"{server.url}/metrics").text
    assert ask(server, "cedar/chat") == said(2, (10, 11, 12), 20)
    assert ask(server, "acme/chat") == said(1, (10, 11, 12), 20)
    gone = httpx.post(f"{server.url}/v1/completions", json=body("acme/code"))
    missing = httpx.post(f"{server.url}/v1/completions", json=body("acme/nope"))
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, missing.json()["error"]["code"])
    assert before.tokens() == said(1, (10, 11, 12), 400)  # of an app that is gone, on the plan it began with
    again = apply(server, plans.moons).json()
    assert (again["swapped"], again["apps"]["changed"]) == (False, [])


def test_what_is_cached_is_found_after_a_swap(server: RunningServer, plans: Plans):
    prompt = list(range(20, 120))

    def cached(model: str) -> int:
        answer = httpx.post(f"{server.url}/v1/completions", json=body(model, prompt))
        assert answer.status_code == 200
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert [cached("acme/code"), cached("acme/code")] == [0, 96]
    report = apply(server, plans.moons).json()
    assert report["kv_groups"] == {"all": 1, "kept": 1}
    assert cached("acme/chat") == 96  # the same model under another name, the same tenant
    assert cached("birch/chat") == 0
    report = apply(server, plans.more("few.json", pages=4096)).json()
    assert report["kv_groups"] == {"all": 1, "kept": 0}
    assert cached("acme/chat") == 0


def test_a_swap_that_does_not_fit_beside_waits_for_what_is_in_flight(plans: Plans):
    """Pages of two sizes cannot be one pool, and the device holds one of them."""
    page_bytes = load_plan(plans.stars).kv_groups[0].page_bytes
    first = plans.more("first.json", STARS, pages=16384, memory_bytes=16384 * page_bytes)
    other = plans.more("other.json", MOONS, pages=16000, memory_bytes=16384 * page_bytes)
    with swapping(plans, plan=first) as server, ThreadPoolExecutor(10) as pool:
        before = Stream(server, "acme/code", 200)
        applied = pool.submit(apply, server, other)
        assert eventually(lambda: any("new requests wait" in line for line in server.progress))
        waiting = [pool.submit(ask, server, "acme/chat") for _ in range(8)]
        time.sleep(0.05)
        assert not any(answer.done() for answer in waiting)
        report = applied.result().json()
        assert (report["beside"], report["swapped"]) == (False, True)
        assert report["pause_s"] > 0.05
        assert before.tokens() == said(1, (10, 11, 12), 200)
        assert {answer.result() for answer in waiting} == {said(1, (10, 11, 12), 20)}


def test_a_swap_that_would_wait_too_long_is_refused(plans: Plans):
    page_bytes = load_plan(plans.stars).kv_groups[0].page_bytes
    first = plans.more("long.json", STARS, pages=16384, memory_bytes=16384 * page_bytes)
    other = plans.more("longer.json", MOONS, pages=16000, memory_bytes=16384 * page_bytes)
    with swapping(plans, plan=first, patience_s=0.2) as server, ThreadPoolExecutor(2) as pool:
        before = Stream(server, "acme/code", 600)
        applied = pool.submit(apply, server, other)
        assert eventually(lambda: any("new requests wait" in line for line in server.progress))
        waiting = pool.submit(ask, server, "acme/chat")
        assert applied.result().status_code == 409
        assert waiting.result() == said(0, (10, 11, 12), 20)
        assert before.tokens() == said(1, (10, 11, 12), 600)


def changed(plan: Path, **fields: Any) -> bytes:
    """A plan whose digest was made right again."""
    content = json.loads(plan.read_bytes())["plan"] | fields
    return (canonical_json({"digest": json_digest("plan v1", content), "plan": content}) + "\n").encode()


def test_wrong_plans_are_refused_and_change_nothing(server: RunningServer, plans: Plans, tmp_path: Path):
    elsewhere, _ = world.build(tmp_path, world.assets(temperature=0.5))
    data = plans.moons.read_bytes()
    wrong = {
        "BC901": [
            b"", b"{}", b"[]", b"\xff\xfe", data[:-100], data.replace(b"cedar", b"sedar"),
            changed(plans.moons, routes=[]), b"[" * 100_000,
        ],
        "BC902": [changed(plans.moons, format_version=0)],
        "BC904": [elsewhere.read_bytes()],
        "BC905": [changed(plans.moons, target="sim"), changed(plans.moons, target="cuda")],
        "BC401": [plans.more("huge.json", pages=1 << 40, memory_bytes=1 << 60).read_bytes()],
    }  # fmt: skip
    before = Stream(server, "acme/code", 300)
    for code, bodies in wrong.items():
        for sent in bodies:
            answer = apply(server, sent)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text
            assert answer.json()["error"]["diagnostics"][0]["code"] == code
            assert len(answer.content) < 32 << 10
            assert httpx.get(f"{server.url}/plan").content == plans.stars.read_bytes()
    assert ask(server, "acme/chat") == said(0, (10, 11, 12), 20)
    assert before.tokens() == said(1, (10, 11, 12), 300)
    count = sum(map(len, wrong.values()))
    assert f'plan_swaps_total{{outcome="refused"}} {count}.0' in httpx.get(f"{server.url}/metrics").text
    assert apply(server, plans.moons).status_code == 200


def test_an_engine_that_dies_while_it_loads(server: RunningServer, plans: Plans):
    before = Stream(server, "acme/code", 1000)
    with ThreadPoolExecutor(1) as pool:
        os.kill(server.engine_pid(), signal.SIGSTOP)
        applied = pool.submit(apply, server, plans.moons)
        time.sleep(0.3)
        server.kill_engine()
        assert applied.result().status_code == 503
    assert before.tokens() == said(1, (10, 11, 12), 1000)
    assert httpx.get(f"{server.url}/plan").content == plans.stars.read_bytes()
    assert apply(server, plans.moons).status_code == 200
    assert ask(server, "cedar/chat") == said(2, (10, 11, 12), 20)


def test_an_engine_that_dies_after_a_swap_has_both_plans_again(plans: Plans):
    with swapping(plans, step_s=0.004) as server:
        before = [Stream(server, "acme/code", 500) for _ in range(3)]
        assert apply(server, plans.moons).status_code == 200
        after = Stream(server, "cedar/chat", 300)
        for _ in range(2):
            server.kill_engine()
            assert eventually(lambda: any("loads the plan before" in line for line in server.progress))
            time.sleep(0.5)
        assert [stream.tokens() for stream in before] == [said(1, (10, 11, 12), 500)] * 3
        assert after.tokens() == said(2, (10, 11, 12), 300)
        assert ask(server, "acme/chat") == said(1, (10, 11, 12), 20)


def test_one_swap_at_a_time_and_none_while_it_ends(server: RunningServer, plans: Plans):
    with ThreadPoolExecutor(1) as pool:
        os.kill(server.engine_pid(), signal.SIGSTOP)
        applied = pool.submit(apply, server, plans.moons)
        time.sleep(0.3)
        second = apply(server, plans.moons)
        assert (second.status_code, second.json()["error"]["code"]) == (409, "swap_under_way")
        os.kill(server.engine_pid(), signal.SIGCONT)
        assert applied.result().status_code == 200
    stream = Stream(server, "cedar/chat", 400)
    server.drain(10)
    assert eventually(lambda: apply(server, plans.stars).status_code == 503)
    assert stream.tokens() == said(2, (10, 11, 12), 400)
    assert server.join()


def test_who_may_swap(plans: Plans, tmp_path: Path):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"acme": ["sk-acme-first"], "*": ["sk-operator-key"]}))
    ring = KeyRing(load_keys(path, {"acme", "birch"}))
    with swapping(plans, keys=ring) as server:
        for key, status in (("sk-acme-first", 403), ("sk-nobody-at-all", 401), ("sk-operator-key", 200)):
            auth = {"authorization": f"Bearer {key}"}
            assert httpx.get(f"{server.url}/plan", headers=auth).status_code == status
            assert apply(server, plans.moons, **auth).status_code == status
        basic = apply(server, plans.moons, authorization="Basic eDpzay1vcGVyYXRvci1rZXk=")
        assert basic.status_code == 401
        plain = apply(server, plans.stars, authorization="Bearer sk-operator-key", **{"content-type": "text/plain"})
        assert plain.status_code == 415


def test_quotas_hold_across_swaps(plans: Plans, tmp_path: Path):
    """What a tenant has used stays used; the plan says how much there is, and the keys file may say otherwise."""
    path = tmp_path / "keys.json"
    path.write_text(
        json.dumps({
            "acme": ["sk-acme-first"], "*": ["sk-operator-key"],
            "birch": {"keys": ["sk-birch-only"], "requests_per_minute": 2},
        })
    )  # fmt: skip
    ring = KeyRing(load_keys(path, {"acme", "birch"}))
    first = plans.more(
        "quota.json", STARS, quotas={"acme": {"requests_per_minute": 3}, "birch": {"requests_per_minute": 1}}
    )
    second = plans.more("quotas.json", MOONS, quotas={"acme": {"requests_per_minute": 4}})

    def asked(server: RunningServer, key: str, model: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(f"{server.url}/v1/completions", json=body(model), headers=headers).status_code

    with swapping(plans, plan=first, keys=ring) as server:
        assert [asked(server, "sk-acme-first", "acme/chat") for _ in range(2)] == [200, 200]
        assert [asked(server, "sk-birch-only", "birch/chat") for _ in range(3)] == [200, 200, 429]
        assert apply(server, second, authorization="Bearer sk-operator-key").status_code == 200
        assert [asked(server, "sk-acme-first", "acme/chat") for _ in range(2)] == [200, 429]
        assert asked(server, "sk-birch-only", "birch/chat") == 429
