"""Figures for the page: who may listen, how many, what is sent, that nothing is done for nobody, and how it ends."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from blockc_runtime.server import live
from blockc_runtime.server.auth import KeyRing
from blockc_runtime.server.catalogue import Catalogue
from blockc_runtime.server.keys_file import load_keys
from tests.runtime.server.running import RunningServer, raw, running
from tests.runtime.server.test_ui import basic, make_page
from tests.support.processes import eventually

KEYS = {"acme": ["sk-acme-first"], "*": ["sk-operator-key"]}
OPERATOR = {"Authorization": "Bearer sk-operator-key"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    path.write_text(json.dumps(KEYS))
    return KeyRing(load_keys(path, {"acme", "birch"}))


@pytest.fixture(scope="module")
def guarded(catalogue: Catalogue, keys: KeyRing) -> Iterator[RunningServer]:
    with running(catalogue, keys=keys, make_page=make_page) as server:
        yield server


@dataclass
class Listener:
    answer: httpx.Response

    def events(self) -> Iterator[dict[str, Any]]:
        for line in self.answer.iter_lines():
            if line.startswith("event: end"):
                return
            if line.startswith("data: "):
                yield json.loads(line[6:])


@contextlib.contextmanager
def listening(server: RunningServer, headers: dict[str, str] = OPERATOR) -> Iterator[Listener]:
    with httpx.stream("GET", f"{server.url}/ui/events", headers=headers, timeout=10) as answer:
        yield Listener(answer)


def ask(server: RunningServer, model: str, count: int) -> None:
    body = {"model": model, "prompt": [5, 6, 7], "max_tokens": count, "ignore_eos": True}
    assert httpx.post(f"{server.url}/v1/completions", json=body, headers=OPERATOR).status_code == 200


def feed_of(server: RunningServer) -> live.Feed:
    (feed,) = [cell.cell_contents for route in server.server.app.routes if getattr(route, "path", "") == "/ui/events"
               for cell in route.endpoint.__closure__ if isinstance(cell.cell_contents, live.Feed)]  # fmt: skip
    return feed


def test_operators_listen_and_nobody_else(guarded: RunningServer):
    for headers in (OPERATOR, {"Authorization": basic("sk-operator-key")}):
        with listening(guarded, headers) as listener:
            assert listener.answer.status_code == 200
            assert listener.answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert next(listener.events())["state"] == "ready"
    url = f"{guarded.url}/ui/events"
    for headers in ({}, {"Authorization": "Bearer sk-wrong-key"}, {"Authorization": basic("sk-wrong-key")}):
        assert httpx.get(url, headers=headers).status_code == 401
    for authorization in ("Bearer sk-acme-first", basic("sk-acme-first")):
        answer = httpx.get(url, headers={"Authorization": authorization})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "operator_only")
    assert httpx.post(url, headers=OPERATOR).status_code == 405


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_cannot_take_places(guarded: RunningServer, site: str):
    answer = httpx.get(f"{guarded.url}/ui/events", headers={**OPERATOR, "Sec-Fetch-Site": site})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site")


def test_what_is_sent(guarded: RunningServer):
    ask(guarded, "acme/chat", 20)
    with listening(guarded) as listener:
        events = listener.events()
        first = next(events)
        ask(guarded, "birch/chat", 30)
        later = next(event for event in events if event["apps"])
    rows = {tuple(row[:2]): row for row in first["apps"]}
    running_, waiting, tokens, ended, found, looked_up, p50, p95 = rows["acme", "chat"][2:]
    assert (running_, waiting, found) == (0, 0, 0)
    assert tokens >= 20
    assert ended >= 1
    assert looked_up >= 3
    assert 0 < p50 <= p95 < 10
    assert {tuple(row[:2]) for row in later["apps"]} == {("birch", "chat")}, "only what changed is sent again"
    assert later["steps"] >= first["steps"] + 30
    assert later["rows"] >= later["steps"]
    assert later["pages"] > 0
    assert later["at"] > first["at"]


def test_two_get_the_same_and_nothing_is_done_for_nobody(guarded: RunningServer):
    feed = feed_of(guarded)
    assert eventually(lambda: feed.listeners == 0)
    asked = []
    stats = guarded.server.client.stats_within
    guarded.server.client.stats_within = lambda *given: asked.append(given) or stats(*given)
    try:
        time.sleep(1.2)
        assert asked == []
        with listening(guarded) as one, listening(guarded) as two:
            first, second = one.events(), two.events()
            times = [{next(events)["at"] for _ in range(4)} for events in (first, second)]
            assert times[0] & times[1], "made once for both"
            assert len(asked) <= len(times[0] | times[1]) + 2, "once a second, however many listen"
        assert eventually(lambda: feed.listeners == 0)
        assert feed._ticker is None
    finally:
        guarded.server.client.stats_within = stats


def test_places_are_few_and_come_back(guarded: RunningServer, monkeypatch: pytest.MonkeyPatch):
    feed = feed_of(guarded)
    monkeypatch.setattr(live, "MOST_LISTENERS", 2)
    request = b"GET /ui/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-operator-key\r\n\r\n"
    connections = [raw(guarded.url) for _ in range(2)]
    for connection in connections:
        connection.sendall(request)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
    answer = httpx.get(f"{guarded.url}/ui/events", headers=OPERATOR)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too_many_listeners")
    for connection in connections:
        connection.close()
    assert eventually(lambda: feed.listeners == 0)
    with listening(guarded) as listener:
        assert next(listener.events())


def test_a_key_is_asked_for_again(catalogue: Catalogue, keys: KeyRing, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "LONGEST_S", 0.5)
    with running(catalogue, keys=keys, make_page=make_page) as server, listening(server) as listener:
        lines = list(listener.answer.iter_lines())
        assert lines[0] == "retry: 2000"
        assert listener.answer.is_stream_consumed, "it ended by itself, and not with the word that the server ends"


@pytest.mark.parametrize("drain_s", [0.0, 5.0])
def test_it_ends_when_the_server_does(catalogue: Catalogue, drain_s: float):
    server = RunningServer(catalogue, make_page=make_page)
    with listening(server, {}) as listener:
        events = listener.events()
        next(events)
        began_s = time.monotonic()
        server.drain(drain_s)
        with contextlib.suppress(httpx.RemoteProtocolError):  # ended in the middle, if there is no time
            list(events)
    assert server.join(4)
    assert time.monotonic() - began_s < 4


def test_without_a_page_there_are_no_figures(server: RunningServer):
    assert httpx.get(f"{server.url}/ui/events").status_code == 404
