"""The engine proper is killed again and again, in every phase: the server stays up, and every answer is whole."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.conftest import Promised
from tests.runtime.server.streams import MODELS, Answer, Connection, alone
from tests.runtime.server.test_command import Command, serving
from tests.support.processes import eventually

PHASES = ("prefill", "decode", "idle")
STREAMS = 4
# A prompt fills a step of 2,048 tokens by itself, so that reading four takes four steps.
LENGTHS = {"prefill": (1900, 20), "decode": (8, 60), "idle": (8, 20)}


def kill(command: Command) -> None:
    (engine,) = command.children()
    os.kill(engine, signal.SIGKILL)


def is_ready(url: str) -> bool:
    return httpx.get(f"{url}/ready", timeout=10).status_code == 200


def rounds(command: Command, url: str, phases: list[str]) -> list[tuple[Answer, tuple[int, ...]]]:
    """One kill a phase; what was answered, and what should have been."""
    rng = random.Random(3)
    found: list[tuple[Answer, tuple[int, ...]]] = []
    connections = [Connection(url) for _ in range(STREAMS)]
    with ThreadPoolExecutor(STREAMS) as pool:
        for phase in phases:
            length, count = LENGTHS[phase]
            if phase == "idle":
                kill(command)
            asked = [(rng.choice(MODELS), tuple(rng.randrange(4, 260) for _ in range(length))) for _ in connections]
            jobs = [
                pool.submit(own.ask, model, prompt, count)
                for own, (model, prompt) in zip(connections, asked, strict=True)
            ]
            if phase != "idle":
                time.sleep(rng.uniform(0.02, 0.15) if phase == "prefill" else rng.uniform(0.2, 0.5))
                kill(command)
            found += [(job.result(), alone(*own, count)) for job, own in zip(jobs, asked, strict=True)]
            assert eventually(lambda: is_ready(url), 20)
    for connection in connections:
        connection.close()
    return found


@pytest.mark.promise("faults")
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_engines_are_killed_in_every_phase(world_files: tuple[Path, Path], kills: int, promised: Promised):
    with serving(world_files[0], "--null-step", "0.04") as command:
        url = command.url()
        # Nobody reads what the server says until it ends: a pipe that is full would hold it up.
        threading.Thread(target=command.process.stderr.read, daemon=True).start()
        began_s = time.monotonic()
        found = rounds(command, url, [PHASES[number % 3] for number in range(kills)])
        took_s = time.monotonic() - began_s
        restarts = f"blockc:engine_restarts_total {kills}.0"
        assert restarts in httpx.get(f"{url}/metrics").text
        assert httpx.get(f"{url}/health").status_code == 200
        same = sum(answer.whole and answer.tokens == list(expected) for answer, expected in found)
        declared = sum(answer.error is not None for answer, _ in found)
        assert same + declared == len(found), "an answer is whole and the same, or ends with a declared error"
        assert declared == 0
        figure = (
            f"{kills} kills in {took_s:.0f} s: server up, {same} of {len(found)} answers the same, {declared} errors"
        )
        promise = "killed at prefill, decode and idle (20 in 5 min): server up, same text or a declared error"
        promised("engine killed", promise, figure, kept=kills >= 20 and took_s <= 300)
