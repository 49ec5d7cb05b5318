"""Many requests on the whole server, the engine proper and the null model: none fails, nothing stays, nothing grows."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.conftest import Promised
from tests.runtime.server.streams import MODELS, Connection, alone
from tests.runtime.server.test_command import Command, serving
from tests.support.processes import eventually

STREAMS = 64
MOST_GROWTH_BYTES = 100 << 20


def resident_bytes(command: Command) -> int:
    """Of the server and its engine."""
    return sum(_resident(pid) for pid in (command.process.pid, *command.children()))


def _resident(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(text.split("VmRSS:")[1].split()[0])


def left_over(url: str) -> dict[str, float]:
    """Gauges that are not what they are on an idle server."""
    lines = httpx.get(f"{url}/metrics", timeout=10).text.splitlines()
    found = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith("blockc:")}
    busy = {name: value for name, value in found.items() if "num_requests_" in name and value}
    held = sum(value for name, value in found.items() if name.startswith("blockc:kv_pages{"))
    held -= sum(value for name, value in found.items() if name.startswith("blockc:kv_pages_free{"))
    return busy | ({"pages held": held} if held else {})


class Load:
    """Streams that are each asked for again once they have ended, after a pause that is as long on average."""

    def __init__(self, url: str, *, pause_s: float = 0.0) -> None:
        self._url, self._pause_s = url, pause_s
        self.requests = self.failures = self.left = 0

    def run(self, count: int | None, until_s: float | None = None, *, leaving: float = 0.0) -> None:
        """So many requests, or as many as there is time for. ``leaving``: the share of clients that hang up."""
        with ThreadPoolExecutor(STREAMS) as pool:
            share = None if count is None else [count // STREAMS + (i < count % STREAMS) for i in range(STREAMS)]
            jobs = [pool.submit(self._one, i, share[i] if share else None, until_s, leaving) for i in range(STREAMS)]
            for job in jobs:
                requests, failures, left = job.result()
                self.requests += requests
                self.failures += failures
                self.left += left

    def _one(self, number: int, count: int | None, until_s: float | None, leaving: float) -> tuple[int, int, int]:
        rng = random.Random(number)
        connection = Connection(self._url)
        requests = failures = left = 0
        while (count is None or requests < count) and (until_s is None or time.monotonic() < until_s):
            model, tokens = rng.choice(MODELS), rng.choice((4, 8, 16, 32))
            prompt = tuple(range(10 + rng.randrange(20), 40))
            leave_after = rng.randint(1, tokens) if rng.random() < leaving else None
            answer = connection.ask(model, prompt, tokens, leave_after=leave_after)
            expected = alone(model, prompt, tokens)
            time.sleep(self._pause_s * rng.uniform(0, 2))
            requests += 1
            left += not answer.whole
            same = answer.tokens == list(expected[: len(answer.tokens)] if not answer.whole else expected)
            failures += answer.error is not None or not same
        connection.close()
        return requests, failures, left


@pytest.mark.promise("load")
@pytest.mark.parametrize("count", [640, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_requests_on_64_streams(world_files: tuple[Path, Path], count: int, promised: Promised):
    with serving(world_files[0]) as command:
        url = command.url()
        load = Load(url)
        began_s = time.monotonic()
        load.run(count)
        took_s = time.monotonic() - began_s
        assert load.requests == count
        assert load.failures == 0
        assert eventually(lambda: not left_over(url)), left_over(url)
        figure = (
            f"{load.requests:,} requests on {STREAMS} streams in {took_s:.0f} s, {load.failures} errors, gauges at 0"
        )
        promised("requests", "10,000 on 64 streams: 0 errors, gauges back to 0", figure, kept=load.failures == 0)


@pytest.mark.promise("load")
@pytest.mark.slow
def test_a_soak(world_files: tuple[Path, Path], pytestconfig: pytest.Config, promised: Promised):
    """One in ten clients hangs up somewhere. What is there after a tenth of the time is where growth begins."""
    lasting_s = pytestconfig.getoption("--soak-s")
    with serving(world_files[0]) as command:
        url = command.url()
        load = Load(url, pause_s=1.0)
        load.run(None, time.monotonic() + lasting_s / 10, leaving=0.1)
        before = resident_bytes(command)
        load.run(None, time.monotonic() + lasting_s * 9 / 10, leaving=0.1)
        grown = resident_bytes(command) - before
        assert load.failures == 0
        assert eventually(lambda: not left_over(url)), left_over(url)
        assert grown <= MOST_GROWTH_BYTES
        figure = (
            f"{lasting_s:.0f} s, {load.requests:,} requests, {load.left:,} hung up: grown by {grown / 2**20:.1f} MB"
        )
        promised(
            "memory in a soak", "10 min: at most 100 MB more", figure, kept=lasting_s >= 600 and load.failures == 0
        )
