"""Requests that nobody should send, while others are served: refused soon, in few words, and others hardly notice."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Promised
from tests.runtime.server import world
from tests.runtime.server.streams import Connection
from tests.runtime.server.test_command import serving

STREAMS = 8
STEP_S = 0.01
ECHO = "canary-" * 20  # more of it than an error may quote
MOST_BYTES = 32 * 1024
COMPLETION: dict[str, Any] = {"model": "acme/chat", "prompt": [5, 6], "max_tokens": 4}


def changed(**fields: Any) -> bytes:
    return json.dumps({**COMPLETION, **fields}).encode()


HOSTILE: dict[str, bytes] = {
    "n = 10^9": changed(n=10**9),
    "max_tokens = -1": changed(max_tokens=-1),
    "NaN temperature": changed(temperature=float("nan")),
    "token id = vocab": changed(prompt=[world.vocab_size()]),
    "10^5 stops": changed(stop=["x"] * 100_000),
    "a body over the limit": changed(user="x" * (5 << 20)),
    "a list for a body": b"[]",
    "a number for a body": b"7",
    "nesting of 10^5": b"[" * 100_000,
    "a name of 10^5 letters": changed(model=ECHO * 700),
    "10^4 unknown fields": changed(**{f"{ECHO}{i}": 1 for i in range(10_000)}),
    "a prompt of 10^6 letters": changed(prompt="word " * 200_000),
    "a schema of 10^5 letters": changed(guided_json=json.dumps({"enum": ["x" * 100_000]})),
}


@dataclass
class Refusals:
    """What the worst of them took."""

    longest_s: float = 0.0
    slowest: str = ""
    largest_bytes: int = 0
    problems: list[str] = field(default_factory=list)

    def send(self, client: httpx.Client, name: str) -> None:
        began_s = time.monotonic()
        answer = client.post("/v1/completions", content=HOSTILE[name])
        took_s = time.monotonic() - began_s
        if took_s > self.longest_s:
            self.longest_s, self.slowest = took_s, name
        self.largest_bytes = max(self.largest_bytes, len(answer.content))
        text = answer.text
        if not 400 <= answer.status_code < 500:
            self.problems.append(f"{name}: status {answer.status_code}")
        if len(answer.content) > MOST_BYTES or ECHO in text:
            self.problems.append(f"{name}: {len(answer.content)} bytes")
        if "Traceback" in text or re.search(r"\.py\b|/(home|usr|opt|tmp|root)/", text):
            self.problems.append(f"{name}: tells of the machine: {text[:200]}")


def most_cpu_s(pid: int, client: httpx.Client) -> tuple[float, str]:
    """What the server takes for the dearest of them, with nothing else to do: a busy machine adds nothing to it."""
    ticks_per_s = os.sysconf("SC_CLK_TCK")

    def cpu_s() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / ticks_per_s

    found = []
    for name, content in HOSTILE.items():
        before = cpu_s()
        for _ in range(5):
            client.post("/v1/completions", content=content)
        found.append(((cpu_s() - before) / 5, name))
    return max(found)


class Streams:
    """Streams that never end by themselves, and how many tokens all of them have had."""

    def __init__(self, url: str) -> None:
        self.tokens = 0
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(url, number)) for number in range(STREAMS)]
        for thread in self._threads:
            thread.start()

    def _read(self, url: str, number: int) -> None:
        connection = Connection(url)
        while not self._ended.is_set():
            prompt = (20 + number, 21, 22)
            for chunk in connection.chunks("birch/chat", prompt, 2000, ignore_eos=True):
                self.tokens += len(chunk["choices"][0].get("token_ids", []))
                if self._ended.is_set():
                    break
            connection.close()

    def rate(self, lasting_s: float) -> float:
        """Tokens a second, of all, from now on."""
        before, began_s = self.tokens, time.monotonic()
        time.sleep(lasting_s)
        return (self.tokens - before) / (time.monotonic() - began_s)

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


def test_each_is_refused_while_others_are_served(world_files: tuple[Path, Path]):
    with serving(world_files[0], "--null-step", str(STEP_S)) as command:
        url = command.url()
        streams = Streams(url)
        refusals = Refusals()
        with httpx.Client(base_url=url, timeout=30) as client:
            for name in HOSTILE:
                refusals.send(client, name)
            assert client.post("/v1/completions", content=changed()).status_code == 200
        tokens = streams.tokens
        streams.end()
        assert refusals.problems == []
        assert refusals.longest_s < 5  # of the promised one, on a machine that does other things
        assert tokens > 0


@pytest.mark.promise("requests")
@pytest.mark.slow
def test_others_keep_their_rate(world_files: tuple[Path, Path], promised: Promised):
    """One hostile client, its requests one after the other with 50 ms between; turns with and without it alternate."""
    with serving(world_files[0], "--null-step", str(STEP_S)) as command:
        url = command.url()
        streams = Streams(url)
        refusals = Refusals()
        paused, ended = threading.Event(), threading.Event()
        paused.set()

        def attack() -> None:
            with httpx.Client(base_url=url, timeout=30) as client:
                while not ended.is_set():
                    for name in HOSTILE:
                        while paused.is_set() and not ended.is_set():
                            time.sleep(0.01)
                        refusals.send(client, name)
                        time.sleep(0.05)

        attacker = threading.Thread(target=attack)
        attacker.start()
        streams.rate(2.0)  # all of them run
        rates = {True: 0.0, False: 0.0}
        for turn in range(10):
            hostile = turn % 2 == 1
            (paused.clear if hostile else paused.set)()
            rates[hostile] += streams.rate(3.0)
        ended.set()
        attacker.join()
        streams.end()
        assert refusals.problems == []
        lost = 1 - rates[True] / rates[False]
        with httpx.Client(base_url=url, timeout=30) as client:
            cpu_s, dearest = most_cpu_s(command.process.pid, client)
        figure = f"{len(HOSTILE)} kinds: 4xx, the longest {refusals.longest_s:.2f} s ({refusals.slowest}), "
        figure += f"the most CPU {cpu_s:.2f} s ({dearest})"
        promised("status of each", "4xx within 1 s", figure, kept=refusals.longest_s <= 1)
        figure = f"at most {refusals.largest_bytes} bytes, none"
        is_small = refusals.largest_bytes <= MOST_BYTES
        promised("error bodies", "at most 32 KB, without paths or echoes", figure, kept=is_small)
        promised("rate of other streams", "lose at most 10 %", f"{lost:.1%} lost", kept=lost <= 0.1)
        assert refusals.longest_s < 5
        assert lost < 0.5
