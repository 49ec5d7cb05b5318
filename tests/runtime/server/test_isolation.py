"""Nobody gets what is another's: tokens of another model, or pages of another tenant's prompts."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from blockc.plan import load_plan, write_plan
from tests.conftest import Promised
from tests.runtime.server import world
from tests.runtime.server.streams import MODELS, Answer, Connection, alone
from tests.runtime.server.test_command import Command, serving

STREAMS = 32
COUNT = 12  # tokens of an answer; the null models of two chains agree in so many by a chance of 400^-12


def ask_many(
    url: str, count: int, on_part: threading.Barrier, parts: int
) -> Iterator[tuple[str, tuple[int, ...], Answer]]:
    """One in five is given up somewhere. All threads meet after each part."""

    def one(number: int) -> list[tuple[str, tuple[int, ...], Answer]]:
        rng = random.Random(number)
        connection = Connection(url)
        found = []
        for turn in range(count // STREAMS):
            if turn % (count // STREAMS // parts) == 0:
                on_part.wait(60)
            model = rng.choice(MODELS)
            prompt = tuple(range(10 + rng.randrange(8), 30))
            leave_after = rng.randint(1, COUNT - 1) if rng.random() < 0.2 else None
            found.append((model, prompt, connection.ask(model, prompt, COUNT, leave_after=leave_after)))
        connection.close()
        return found

    with ThreadPoolExecutor(STREAMS) as pool:
        for found in pool.map(one, range(STREAMS)):
            yield from found


def kill(command: Command) -> None:
    for engine in command.children():
        os.kill(engine, signal.SIGKILL)


@pytest.mark.promise("isolation")
@pytest.mark.parametrize("count", [640, pytest.param(10_240, marks=pytest.mark.slow)])
def test_no_foreign_tokens(world_files: tuple[Path, Path], count: int, promised: Promised):
    """Requests of all models interleaved, with the same prompts; clients leave, engines die and load anew."""
    parts = 4
    with serving(world_files[0]) as command:
        url = command.url()
        threading.Thread(target=command.process.stderr.read, daemon=True).start()
        begun = iter(range(parts))
        barrier = threading.Barrier(STREAMS, action=lambda: kill(command) if next(begun) else None)
        answers = list(ask_many(url, count, barrier, parts))
        assert len(answers) == count
        whole = [(model, prompt, answer) for model, prompt, answer in answers if answer.whole]
        assert len(whole) > 0.7 * count
        assert not [answer.error for _, _, answer in answers if answer.error is not None]
        foreign = 0
        for model, prompt, answer in answers:
            own = alone(model, prompt, COUNT)
            assert len({alone(other, prompt, COUNT) for other in MODELS}) == len(MODELS), "models can be told apart"
            foreign += answer.tokens != list(own[: len(answer.tokens)])
        assert foreign == 0
        assert f"blockc:engine_restarts_total {parts - 1}.0" in httpx.get(f"{url}/metrics").text
        figure = (
            f"{count:,} requests of {len(MODELS)} models, {count - len(whole):,} given up, {parts - 1} engines killed: "
        )
        promised(
            "markers",
            "10,000 interleaved requests with reloads and cancels: 0 foreign markers",
            figure + f"{foreign} foreign",
            kept=count >= 10_000 and foreign == 0,
        )


@pytest.fixture(scope="module")
def one_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """All apps on one chain: what tells their caches apart is their isolation group alone."""
    path, zoo = world.build(tmp_path_factory.mktemp("one-model"))
    plan = load_plan(path)
    apps = tuple(app.model_copy(update={"chain": 0}) for app in plan.apps)
    write_plan(plan.model_copy(update={"apps": apps}), path)
    with serving(path, "--zoo", str(zoo)) as command, httpx.Client(base_url=command.url(), timeout=20) as client:
        yield client


def cached_tokens(client: httpx.Client, model: str, prompt: list[int]) -> int:
    usage = client.post("/v1/completions", json={"model": model, "prompt": prompt, "max_tokens": 1}).json()["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


@pytest.mark.promise("isolation")
def test_pages_are_found_within_a_tenant_always_and_across_tenants_never(one_model: httpx.Client, promised: Promised):
    """Pairs of the same prompt: for the same app, for another of the tenant, for another tenant's; in both orders."""
    rng = random.Random(5)
    counts = {"same": 0, "foreign": 0}
    pairs = 0
    for first, second in [("acme/chat", "acme/code"), ("acme/chat", "birch/chat"), ("birch/chat", "acme/code")] * 20:
        prompt = [rng.randrange(4, 260) for _ in range(100)]
        assert cached_tokens(one_model, first, prompt) == 0, "nobody has sent it before"
        found = cached_tokens(one_model, second, prompt)
        again = cached_tokens(one_model, first, prompt)
        is_same = first.split("/")[0] == second.split("/")[0]
        assert again >= 80, "a tenant finds its own again"
        assert (found >= 80) if is_same else found == 0
        counts["same"] += (again >= 80) + (is_same and found >= 80)
        counts["foreign"] += not is_same and found > 0
        pairs += 2 if is_same else 1
    figure = f"{counts['same']} of {pairs} within a tenant, {counts['foreign']} of 40 across tenants"
    promised("paired cache test", "cross-tenant reuse never, same-tenant reuse always", figure,
             kept=counts["same"] == pairs and counts["foreign"] == 0)  # fmt: skip
