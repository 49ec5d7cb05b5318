"""``blockc serve`` as a process, with the engine proper on the null executor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from blockc_runtime.executor.null import next_token
from tests.conftest import Promised
from tests.runtime.server import world
from tests.support.processes import eventually, is_alive

PROMPT = [10, 11, 12, 13]


class Command:
    """A running ``blockc serve``."""

    def __init__(self, plan: Path, *options: str) -> None:
        program = "import sys; from blockc.cli import main; sys.exit(main())"
        fixed = ("--port", "0", "--executor", "null")
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", str(plan), *fixed, *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def url(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving on http://127.0.0.1:"), self.process.stderr.read()
        return line.split()[-1]

    def children(self) -> list[int]:
        """Direct children, so that a test can see them gone."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        lists = [(thread / "children").read_text() for thread in threads]
        return [int(pid) for text in lists for pid in text.split()] if path.exists() else []

    def end(self, number: int = signal.SIGTERM, within_s: float = 10) -> tuple[int, str]:
        """Signal it; return its exit code and stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=within_s)
        return self.process.returncode, errors


@contextmanager
def serving(plan: Path, *options: str) -> Iterator[Command]:
    command = Command(plan, *options)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.process.kill()
        command.process.communicate()


def null_tokens(count: int, chain: int = 0) -> list[int]:
    tokens = list(PROMPT)
    for _ in range(count):
        tokens.append(next_token(chain, tokens, world.vocab_size()))
        if tokens[-1] == 1:  # the end-of-text token
            break
    return tokens[len(PROMPT) :]


def test_from_start_to_end(world_files):
    with serving(world_files[0]) as command:
        url = command.url()
        assert httpx.get(f"{url}/ready").status_code == 200
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        for chain, model in enumerate(("acme/chat", "acme/code", "birch/chat")):
            answer = client.completions.create(
                model=model, prompt=PROMPT, max_tokens=100, temperature=0,
                extra_body={"return_token_ids": True},
            )  # fmt: skip
            assert answer.choices[0].token_ids == null_tokens(100, chain)
        children = command.children()
        assert children
        code, errors = command.end()
        assert code == 0
        assert "no --keys" in errors
        assert "Traceback" not in errors
        assert not any(is_alive(pid) for pid in children)


def test_the_prefix_cache_is_counted(world_files):
    with serving(world_files[0]) as command:
        url = command.url()
        body = {"model": "acme/chat", "prompt": PROMPT * 20, "max_tokens": 1}
        cached = [
            httpx.post(f"{url}/v1/completions", json=body).json()["usage"]["prompt_tokens_details"] for _ in range(2)
        ]
        assert cached[0] == {"cached_tokens": 0}
        assert cached[1]["cached_tokens"] >= 64
        text = httpx.get(f"{url}/metrics").text
        assert 'blockc:prefix_cache_queries_total{app="chat",tenant="acme"} 160.0' in text


def test_the_engine_proper_is_killed_while_it_decodes(world_files):
    with serving(world_files[0]) as command:
        url = command.url()
        body = {
            "model": "acme/chat", "prompt": PROMPT, "max_tokens": 1500, "stream": True,
            "ignore_eos": True, "return_token_ids": True,
        }  # fmt: skip
        ids: list[int] = []
        killed = False
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    ids += json.loads(line[6:])["choices"][0].get("token_ids", [])
                if len(ids) > 100 and not killed:
                    for pid in command.children():
                        os.kill(pid, signal.SIGKILL)
                    killed = True
        expected = list(PROMPT)
        for _ in range(1500):
            expected.append(next_token(0, expected, world.vocab_size()))
        assert ids == expected[len(PROMPT) :]


@pytest.mark.promise("drain")
def test_killed_without_notice_it_leaves_no_engine(world_files, promised: Promised):
    with serving(world_files[0]) as command:
        command.url()
        children = command.children()
        command.process.kill()
        command.process.wait()
        began_s = time.monotonic()
        assert eventually(lambda: not any(is_alive(pid) for pid in children), 10)
        took_s = time.monotonic() - began_s
        promised("children of a killed server", "none left after 10 s", f"gone after {took_s:.1f} s", kept=took_s <= 10)


def test_an_interrupt_without_time_to_drain(world_files):
    with serving(world_files[0], "--drain", "0") as command:
        url = command.url()
        body = {
            "model": "acme/chat", "prompt": PROMPT, "max_tokens": 2000, "stream": True,
            "ignore_eos": True,
        }  # fmt: skip
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as answer:
            lines = answer.iter_lines()
            next(lines)
            began_s = time.monotonic()
            command.process.send_signal(signal.SIGINT)
            assert list(lines)[-2:-1] == ["data: [DONE]"]
        assert command.process.wait(5) == 0
        assert time.monotonic() - began_s < 4


def streaming(url: str, count: int) -> Any:
    body = {
        "model": "acme/chat", "prompt": PROMPT, "max_tokens": count, "stream": True, "ignore_eos": True,
        "return_token_ids": True,
    }  # fmt: skip
    return httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30)


def test_sigterm_finishes_what_is_in_flight_and_takes_nothing_new(world_files):
    with serving(world_files[0], "--null-step", "0.005") as command:
        url, children = command.url(), command.children()
        with streaming(url, 300) as answer:
            lines = answer.iter_lines()
            seen = [next(lines)]
            command.process.send_signal(signal.SIGTERM)
            assert eventually(lambda: httpx.get(f"{url}/ready").status_code == 503)
            for path, body in (
                ("/v1/completions", {"model": "acme/chat", "prompt": PROMPT, "max_tokens": 1}),
                ("/admin/plan", json.loads(world_files[0].read_bytes())),
            ):
                assert httpx.post(f"{url}{path}", json=body).status_code == 503
            seen += lines
        ids = [
            token
            for line in seen
            if line.startswith("data: {")
            for token in json.loads(line[6:])["choices"][0].get("token_ids", [])
        ]
        assert len(ids) == 300
        assert command.process.wait(10) == 0
        assert eventually(lambda: not any(is_alive(pid) for pid in children), 10)


@pytest.mark.parametrize("hangs", [False, True])
def test_sigterm_without_time_ends_within_4_s(world_files, hangs):
    """Even if the engine is stuck in a step; and no process is left."""
    with serving(world_files[0], "--drain", "0", "--null-step", "0.005") as command:
        url, children = command.url(), command.children()
        with streaming(url, 2000) as answer:
            lines = answer.iter_lines()
            next(lines)
            if hangs:
                for pid in children:
                    os.kill(pid, signal.SIGSTOP)
            began_s = time.monotonic()
            command.process.send_signal(signal.SIGTERM)
            assert "the server is ending" in "".join(lines)
        assert command.process.wait(5) == 0
        assert time.monotonic() - began_s < 4
        assert eventually(lambda: not any(is_alive(pid) for pid in children), 10)


def test_sigterm_in_the_middle_of_a_swap(world_files, tmp_path: Path):
    plan, zoo = world_files
    other = world.build_more(tmp_path, zoo, "other.json", (("acme", "chat"),))
    with serving(plan, "--drain", "0", "--zoo", str(zoo)) as command, ThreadPoolExecutor(1) as pool:
        url, children = command.url(), command.children()
        for pid in children:
            os.kill(pid, signal.SIGSTOP)
        headers = {"content-type": "application/json"}
        applied = pool.submit(httpx.post, f"{url}/admin/plan", content=other.read_bytes(), headers=headers, timeout=20)
        time.sleep(0.5)
        began_s = time.monotonic()
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(8) == 0
        assert time.monotonic() - began_s < 4
        assert applied.exception(10) is not None or applied.result().status_code == 503
        assert eventually(lambda: not any(is_alive(pid) for pid in children), 10)


def test_a_plan_that_is_compiled_anew_does_not_matter_until_it_is_applied(tmp_path: Path):
    """The file that was named may change; an engine that starts again is given what is served."""
    plan, zoo = world.build(tmp_path)
    with serving(plan) as command:
        url = command.url()
        served = plan.read_bytes()
        plan.write_bytes(world.build_more(tmp_path, zoo, "new.json", (("cedar", "chat"),)).read_bytes())
        for pid in command.children():
            os.kill(pid, signal.SIGKILL)
        body = {"model": "acme/chat", "prompt": PROMPT, "max_tokens": 5, "ignore_eos": True, "return_token_ids": True}
        answer = httpx.post(f"{url}/v1/completions", json={**body, "temperature": 0}, timeout=30)
        assert answer.json()["choices"][0]["token_ids"] == null_tokens(5)
        assert httpx.get(f"{url}/plan").content == served


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--host", "0.0.0.0"), "BC109"),
        (("--keys", "missing.json"), "BC003"),
        (("--zoo", "missing"), "BC904"),
    ],
)
def test_what_is_wrong_is_a_diagnostic(world_files, options, code):
    with serving(world_files[0], *options) as command:
        out, errors = command.process.communicate(timeout=20)
        assert command.process.returncode == 1
        assert out == ""
        assert code in errors
        assert "Traceback" not in errors


def test_a_plan_that_asks_for_more_than_there_is(tmp_path: Path):
    plan, _ = world.build(tmp_path, requires=("op:blockc.telepathy",))
    with serving(plan, "--executor", "torch") as command:
        _, errors = command.process.communicate(timeout=60)
        assert command.process.returncode == 1
        assert "BC905" in errors
        assert "op:blockc.telepathy" in errors


def test_a_taken_port_is_a_diagnostic(world_files):
    with serving(world_files[0]) as first:
        port = first.url().rsplit(":", 1)[1]
        with serving(world_files[0], "--port", port) as second:
            _, errors = second.process.communicate(timeout=20)
            assert second.process.returncode == 1
            assert "cannot listen" in errors


def test_a_damaged_zoo_is_a_diagnostic(tmp_path: Path):
    plan, zoo = world.build(tmp_path)
    for blob in (zoo / "blobs").iterdir():
        blob.write_bytes(b"other")
    with serving(plan) as command:
        _, errors = command.process.communicate(timeout=20)
        assert command.process.returncode == 1
        assert "BC903" in errors


def test_the_page_of_a_served_plan(world_files):
    """Rendered from the plan by the command line, live, and without a word of the keys."""
    plan, _ = world_files
    with serving(plan) as command:
        answer = httpx.get(f"{command.url()}/ui", timeout=20)
        assert answer.status_code == 200
        assert 'id="live"' in answer.text
        assert "acme/chat" in answer.text
        assert answer.headers["content-security-policy"].startswith("default-src 'self'; script-src 'sha256-")
