"""The log as JSON: every line an object, each request with what it took, and nothing of what it said."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from blockc_runtime.server.auth import KeyRing
from blockc_runtime.server.catalogue import Catalogue
from blockc_runtime.server.json_log import JsonLog
from blockc_runtime.server.keys_file import load_keys
from tests.runtime.server.running import running
from tests.runtime.server.test_access import CANARY, SECRET_WORDS, TENANTS, keys_file, post
from tests.runtime.server.test_command import serving
from tests.support.processes import eventually


def test_a_request_is_a_line_with_its_times(catalogue: Catalogue, tmp_path: Path):
    path = keys_file(tmp_path / "keys.json", acme=[CANARY])
    lines: list[str] = []
    log = JsonLog(lines.append)
    keys = KeyRing(load_keys(path, TENANTS))
    with running(catalogue, keys=keys, watchers=(log.tell,), engine_options=("--step-s", "0.01")) as server:
        whole = post(server, CANARY, max_tokens=9)
        post(server, CANARY, stream=True, max_tokens=9)
        post(server, CANARY, max_tokens=-1)
        post(server, CANARY + "x")
        httpx.get(f"{server.url}/health")
        assert eventually(lambda: len(lines) == 4)
    text = "\n".join(lines)
    assert CANARY not in text
    assert SECRET_WORDS.split()[1] not in text
    assert whole.json()["choices"][0]["text"] not in text
    done, streamed, invalid, unknown = [json.loads(line) for line in lines]
    for line in (done, streamed):
        assert (line["event"], line["level"], line["status"]) == ("request", "info", 200)
        assert (line["tenant"], line["model"], line["completion_tokens"]) == ("acme", "acme/chat", 9)
        assert 0 <= line["queue_ms"] <= line["ttft_ms"] <= line["engine_ms"] <= line["duration_ms"] + 1
        assert line["engine_ms"] - line["ttft_ms"] >= 7 * 10  # eight steps, by two clocks
    assert done["request_id"] == whole.headers["x-request-id"]
    assert (invalid["status"], unknown["status"]) == (400, 401)
    assert "ttft_ms" not in invalid


def test_what_libraries_log_are_lines_and_exceptions_have_no_words():
    lines: list[str] = []
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    try:
        JsonLog(lines.append).take_logging()
        logging.getLogger("uvicorn.error").warning("Invalid %s request", "HTTP")
        logging.getLogger("uvicorn.error").info("not worth a line")
        try:
            raise KeyError(CANARY)
        except KeyError:
            logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
    finally:
        root.handlers, root.level = handlers, level
    warning, error = [json.loads(line) for line in lines]
    assert (warning["level"], warning["event"], warning["message"]) == ("warning", "log", "Invalid HTTP request")
    assert (error["level"], error["exception"]) == ("error", "KeyError")
    assert error["message"] == "Exception in ASGI application"
    assert error["raised_in"][-1].endswith("test_what_libraries_log_are_lines_and_exceptions_have_no_words")
    assert CANARY not in "".join(lines)


def objects(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "event"} <= line.keys() for line in found)
    return found


def test_every_line_of_a_whole_life_is_an_object(world_files: tuple[Path, Path]):
    with serving(world_files[0], "--log-format", "json") as command:
        url = command.url()
        httpx.post(f"{url}/v1/completions", json={"model": "acme/chat", "prompt": [5, 6], "max_tokens": 3})
        code, errors = command.end()
    assert code == 0
    lines = objects(errors)
    assert {line["event"] for line in lines} == {"server", "engine", "request"}
    assert [line["model"] for line in lines if line["event"] == "request"] == ["acme/chat"]
    assert any(line["message"].startswith("ending") for line in lines if line["event"] == "server")
    assert not any(line["message"].startswith("engine:") for line in lines if line["event"] == "engine")


def test_a_server_that_does_not_start_says_so_in_json(world_files: tuple[Path, Path]):
    with serving(world_files[0], "--log-format", "json", "--host", "0.0.0.0") as command:
        out, errors = command.process.communicate(timeout=20)
    assert (command.process.returncode, out) == (1, "")
    (line,) = objects(errors)
    assert (line["level"], line["event"], line["code"]) == ("error", "diagnostic", "BC109")
    assert line["help"]


@pytest.mark.parametrize("words", ["xml", ""])
def test_other_formats_are_a_usage_error(world_files: tuple[Path, Path], words: str):
    command = [sys.executable, "-m", "blockc", "serve", str(world_files[0]), "--log-format", words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 64
    assert "json" in done.stderr
