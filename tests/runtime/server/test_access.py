"""Rotation of keys, request ids and the audit log, on ``blockc serve`` and on a server in this process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from blockc.diag import DiagnosticError
from blockc_runtime.server.access import AccessMiddleware, audit_file
from blockc_runtime.server.auth import KeyRing
from blockc_runtime.server.catalogue import Catalogue
from blockc_runtime.server.key_sources import KeySources, watch_keys
from blockc_runtime.server.keys_file import load_keys
from tests.runtime.server.running import RunningServer, raw, running
from tests.support.processes import eventually

TENANTS = frozenset({"acme", "birch"})
CANARY = "sk-canary-0123456789"
SECRET_WORDS = "the quick brown fox jumps"


def post(
    server: RunningServer, key: str | None, headers: dict[str, str] | None = None, **fields: Any
) -> httpx.Response:
    own = {} if key is None else {"Authorization": f"Bearer {key}"}
    body = {"model": "acme/chat", "prompt": SECRET_WORDS, "max_tokens": 4, **fields}
    return httpx.post(f"{server.url}/v1/completions", json=body, headers={**own, **(headers or {})})


def keys_file(path: Path, **keys: Any) -> Path:
    """Written beside it and moved over it, as secrets are mounted."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(keys))
    os.replace(beside, path)
    return path


def test_keys_rotate_while_it_serves(catalogue: Catalogue, tmp_path: Path):
    path = keys_file(tmp_path / "keys.json", acme=["sk-acme-first"])
    ring = KeyRing(load_keys(path, TENANTS))
    lines: list[str] = []
    with running(catalogue, keys=ring) as server:
        watch = asyncio.run_coroutine_threadsafe(
            watch_keys(KeySources(file=path), ring, lambda: dict.fromkeys(TENANTS, ()), lines.append, poll_s=0.02),
            server.loop,
        )
        assert post(server, "sk-acme-first").status_code == 200
        keys_file(path, acme=["sk-acme-first", "sk-acme-second"])  # both for a while
        assert eventually(lambda: post(server, "sk-acme-second").status_code == 200, 5)
        assert post(server, "sk-acme-first").status_code == 200
        keys_file(path, acme={"keys": ["sk-acme-second"], "requests_per_minute": 2})
        assert eventually(lambda: post(server, "sk-acme-first").status_code == 401, 5)
        assert [post(server, "sk-acme-second").status_code for _ in range(3)] == [200, 200, 429]
        for wrong in ("{", json.dumps({"acme": [CANARY, "x"]})):
            seen = len(lines)
            path.write_text(wrong)
            assert eventually(lambda seen=seen: len(lines) > seen, 5)
            assert "the keys stay as they were" in lines[-1]
            assert post(server, "sk-acme-first").status_code == 401
            assert post(server, "sk-acme-second").status_code == 429
        watch.cancel()
    assert CANARY not in "".join(lines)


def test_keys_of_a_tenant_that_comes_with_a_plan(catalogue: Catalogue, tmp_path: Path):
    path = keys_file(tmp_path / "keys.json", acme=["sk-acme-first"])
    sources = KeySources(file=path)
    ring, lines, tenants = KeyRing(sources.load({"acme": ()})), [], [{"acme": ()}]
    with running(catalogue, keys=ring) as server:
        watching = watch_keys(sources, ring, lambda: tenants[0], lines.append, poll_s=0.02)
        watch = asyncio.run_coroutine_threadsafe(watching, server.loop)
        keys_file(path, acme=["sk-acme-first"], birch=["sk-birch-only"])
        assert eventually(lambda: any("the keys stay as they were" in line for line in lines), 5)
        assert post(server, "sk-birch-only").status_code == 401
        tenants[0] = {"acme": (), "birch": ()}
        assert eventually(lambda: post(server, "sk-birch-only", model="birch/chat").status_code == 200, 5)
        watch.cancel()


def test_every_answer_has_an_id(catalogue: Catalogue, tmp_path: Path):
    path = keys_file(tmp_path / "keys.json", acme=["sk-acme-first"])
    with running(catalogue, keys=KeyRing(load_keys(path, TENANTS))) as server:
        ids = []
        for key, fields, status in [
            ("sk-acme-first", {}, 200),
            ("sk-acme-first", {"stream": True}, 200),
            ("sk-acme-first", {"max_tokens": -1}, 400),
            (None, {}, 401),
            ("sk-acme-first", {"model": "birch/chat"}, 404),
        ]:
            answer = post(server, key, **fields)
            assert answer.status_code == status
            ids.append(answer.headers["x-request-id"])
            assert re.fullmatch("req_[0-9a-f]{24}", ids[-1])
        assert len(set(ids)) == 5
        assert httpx.get(f"{server.url}/health").headers["x-request-id"]
        own = {"X-Request-Id": "trace-7.a"}
        assert post(server, "sk-acme-first", own).headers["x-request-id"] == "trace-7.a"
        for bad in ("x" * 65, 'a"b', "a b", ""):
            assert post(server, "sk-acme-first", {"X-Request-Id": bad}).headers["x-request-id"].startswith("req_")


def test_the_audit_log_says_who_did_what_and_shows_no_secret(catalogue: Catalogue, tmp_path: Path):
    path = keys_file(tmp_path / "keys.json", acme=["sk-acme-other", CANARY])
    log = tmp_path / "audit.jsonl"
    with running(catalogue, keys=KeyRing(load_keys(path, TENANTS)), audit=audit_file(log)) as server:
        answer = post(server, CANARY)
        stream = post(server, CANARY, stream=True, max_tokens=9)
        post(server, CANARY, max_tokens=-1)
        post(server, CANARY, model=f"birch/{CANARY}")
        post(server, CANARY + "x", {"X-Request-Id": "mine"})
        httpx.get(f"{server.url}/v1/{'y' * 500}?key={CANARY}", headers={"Authorization": f"Bearer {CANARY}"})
        httpx.get(f"{server.url}/health")
        assert eventually(lambda: log.read_text().count("\n") == 6, 5)
    text = log.read_text()
    assert CANARY not in text
    assert "quick" not in text
    assert answer.json()["choices"][0]["text"] not in text
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    done, streamed, invalid, foreign, unknown, lost = [json.loads(line) for line in text.splitlines()]
    assert done["request_id"] == answer.headers["x-request-id"]
    assert done["id"] == answer.json()["id"]
    assert (done["tenant"], done["key"], done["model"], done["status"]) == ("acme", 2, "acme/chat", 200)
    assert done["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert (done["completion_tokens"], streamed["completion_tokens"]) == (4, 9)
    assert (done["method"], done["path"]) == ("POST", "/v1/completions")
    assert streamed["request_id"] == stream.headers["x-request-id"]
    assert (invalid["status"], foreign["status"], unknown["status"], lost["status"]) == (400, 404, 401, 404)
    assert "model" not in foreign
    assert "tenant" not in unknown
    assert unknown["request_id"] == "mine"
    assert len(lost["path"]) == 100


def test_an_audit_log_that_cannot_be_written_is_said_before_anything_is_served(tmp_path: Path):
    with pytest.raises(DiagnosticError) as refused:
        audit_file(tmp_path / "none" / "audit.jsonl")
    assert [item.code.id for item in refused.value.diagnostics] == ["BC003"]


@pytest.mark.parametrize("audit", [True, False])
def test_a_client_that_leaves_is_noted(catalogue: Catalogue, tmp_path: Path, audit: bool):
    log = tmp_path / "audit.jsonl"
    with running(catalogue, audit=audit_file(log) if audit else None, engine_options=("--step-s", "0.01")) as server:
        body = {"model": "acme/chat", "prompt": [5], "max_tokens": 2000, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
            next(answer.iter_raw())
        server.call(server.server.client.idle())
        if not audit:
            assert not log.exists()
            return
        assert eventually(log.exists, 5)
    (line,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert 1 <= line["completion_tokens"] < 2000
    assert "tenant" not in line  # without keys nobody is known


def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_bug(
    catalogue: Catalogue, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    audit = tmp_path / "audit.jsonl"
    with running(catalogue, audit=audit_file(audit)) as server:
        with raw(server.url) as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            time.sleep(0.05)  # the server is reading it
        assert eventually(audit.read_bytes)
    assert json.loads(audit.read_text())["status"] == 0
    assert caplog.records == []


def test_a_bug_is_noted_as_one():
    lines: list[dict[str, Any]] = []

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": []}
    with pytest.raises(ZeroDivisionError):
        asyncio.run(AccessMiddleware(broken, [lambda exchange: lines.append(exchange.line())])(scope, None, None))  # type: ignore[arg-type]
    assert lines[0]["status"] == 500
