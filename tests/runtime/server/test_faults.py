"""What happens to requests when engines die, clients leave and servers end."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from blockc_runtime.server.catalogue import Catalogue
from blockc_runtime.server.engine_client import QueueLimits
from blockc_runtime.server.engine_link import EngineState
from tests.conftest import Promised
from tests.runtime.server import world
from tests.runtime.server.running import DIGEST, RunningServer, raw, running
from tests.runtime.server.standin import PAGES, token_at
from tests.support.processes import eventually, is_alive

PROMPT = [10, 11, 12, 13]
SLOW = ("--step-s", "0.01")


def body(count: int, **options) -> dict[str, object]:
    return {"model": "acme/chat", "prompt": PROMPT, "max_tokens": count, **options}


def expected_text(count: int) -> str:
    ids = [token_at(0, len(PROMPT) + index) for index in range(count)]
    return world.tokenizer().decode(ids)


def read_stream(url: str, count: int, on_first=lambda: None) -> tuple[str, dict | None]:
    """Return the text of a stream and its error, if it ended in one."""
    text, error = "", None
    with httpx.stream("POST", f"{url}/v1/completions", json=body(count, stream=True), timeout=30) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                error = chunk["error"]
            else:
                text += chunk["choices"][0]["text"]
                on_first()
                on_first = lambda: None  # noqa: E731
    return text, error


def all_free(server: RunningServer) -> bool:
    return server.free_pages() == PAGES


def test_killed_while_it_decodes(catalogue: Catalogue):
    with running(catalogue, engine_options=SLOW) as server:
        pids = []
        for _ in range(2):
            text, error = read_stream(server.url, 60, lambda: pids.append(server.kill_engine()))
            assert error is None
            assert text == expected_text(60)
        assert not any(is_alive(pid) for pid in pids)
        assert eventually(lambda: all_free(server))
        metrics = httpx.get(server.url + "/metrics").text
        assert "blockc:engine_restarts_total 2.0" in metrics
        assert 'num_requests_running{app="chat",tenant="acme"} 0.0' in metrics


def test_killed_again_and_again_under_many_streams(catalogue: Catalogue):
    with running(catalogue, engine_options=SLOW) as server, ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(read_stream, server.url, 80) for _ in range(8)]
        for _ in range(3):
            time.sleep(0.3)
            if server.server.client.state is EngineState.READY:
                server.kill_engine()
        assert [stream.result(30) for stream in streams] == [(expected_text(80), None)] * 8


def test_killed_before_the_first_token(catalogue: Catalogue):
    with running(catalogue, engine_options=("--step-s", "0.4")) as server:
        threading.Timer(0.2, server.kill_engine).start()
        server.engine_options = list(SLOW)
        assert read_stream(server.url, 20) == (expected_text(20), None)


def test_killed_while_idle(catalogue: Catalogue):
    with running(catalogue) as server:
        server.kill_engine()
        assert eventually(lambda: server.server.client.state is EngineState.STARTING)
        answer = httpx.post(f"{server.url}/v1/completions", json=body(20), timeout=20)
        assert answer.json()["choices"][0]["text"] == expected_text(20)


def test_an_engine_that_never_starts_again(catalogue: Catalogue):
    with running(catalogue, engine_options=SLOW) as server:

        def spoil() -> None:
            server.engine_options = ["--exit-at-start", "3"]
            server.kill_engine()

        text, error = read_stream(server.url, 500, spoil)
        assert error is not None
        assert error["type"] == "service_unavailable_error"
        assert expected_text(500).startswith(text)
        ready = httpx.get(f"{server.url}/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "failed"})
        assert httpx.get(f"{server.url}/health").status_code == 200
        answer = httpx.post(f"{server.url}/v1/completions", json=body(20))
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
        assert any("giving up" in line for line in server.progress)


def test_a_request_that_kills_every_engine_ends(catalogue: Catalogue):
    limits = QueueLimits(deaths=2)
    with running(catalogue, engine_options=("--step-s", "30"), limits=limits) as server:
        done: list[httpx.Response] = []
        url = f"{server.url}/v1/completions"
        client = threading.Thread(target=lambda: done.append(httpx.post(url, json=body(5), timeout=30)))
        client.start()
        for _ in range(2):
            assert eventually(
                lambda: server.server.client.state is EngineState.READY and not server.server.client._idle.is_set()
            )
            server.kill_engine()
            assert eventually(lambda: server.server.client.state is EngineState.STARTING)
        client.join(10)
        assert done[0].status_code == 503
        assert "repeatedly" in done[0].json()["error"]["message"]


def test_an_engine_that_does_not_start_ends_the_server(catalogue: Catalogue):
    server = RunningServer(catalogue, engine_options=("--exit-at-start", "3"))
    assert server.error is not None
    assert "exit code 3" in str(server.error)
    assert server.join()


def test_an_engine_of_another_plan_is_refused(catalogue: Catalogue):
    server = RunningServer(catalogue, digest="0" * 64)
    assert server.error is not None
    assert [item.code.id for item in server.error.diagnostics] == ["BC901"]
    assert DIGEST not in str(server.error)
    assert server.join()


@pytest.mark.promise("cancellation")
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_work(catalogue: Catalogue, stream: bool, promised: Promised):
    with running(catalogue, engine_options=SLOW) as server:
        connections = []
        for _ in range(5):
            connection = raw(server.url)
            data = json.dumps(body(1900, stream=stream, ignore_eos=True)).encode()
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(data), data)
            )
            connections.append(connection)
        assert eventually(lambda: server.stats().unfinished == 5)
        if stream:
            assert all(connection.recv(10) for connection in connections)
        for connection in connections:
            connection.close()
        left_s = time.monotonic()
        assert eventually(lambda: all_free(server), 1.5)
        took_s = time.monotonic() - left_s
        kind = "streams" if stream else "whole answers"
        figure = f"5 {kind} of steps of 10 ms: pages free after {1000 * took_s:.0f} ms"
        promised(f"closed socket, {kind}", "work ends within a step + 1 s, pages free", figure, kept=took_s <= 1.01)
        assert server.stats().unfinished == 0
        metrics = httpx.get(server.url + "/metrics").text
        assert 'finished_reason="cancelled",tenant="acme"} 5.0' in metrics


@pytest.mark.promise("cancellation")
def test_two_hundred_clients_with_short_patience(catalogue: Catalogue, promised: Promised):
    limits = QueueLimits()
    with running(catalogue, engine_options=SLOW, limits=limits) as server:

        def impatient(_: int) -> None:
            with pytest.raises(httpx.TimeoutException):
                httpx.post(f"{server.url}/v1/completions", json=body(1900), timeout=0.5)

        with ThreadPoolExecutor(50) as pool:
            list(pool.map(impatient, range(200)))
        began_s = time.monotonic()
        answer = httpx.post(f"{server.url}/v1/completions", json=body(10), timeout=5)
        assert answer.status_code == 200
        took_s = time.monotonic() - began_s
        assert took_s < 5
        assert eventually(lambda: all_free(server))
        figure = f"the next answered in {took_s:.2f} s, all pages free"
        promised("200 clients with 0.5 s of patience", "the next answered in < 5 s", figure, kept=took_s < 5)


def test_the_queue_is_bounded(catalogue: Catalogue):
    limits = QueueLimits(unfinished=6, unfinished_per_tenant=4)
    with running(catalogue, engine_options=SLOW, limits=limits) as server:
        url = f"{server.url}/v1/completions"
        with ThreadPoolExecutor(4) as pool:
            held = [pool.submit(httpx.post, url, json=body(150, ignore_eos=True), timeout=30) for _ in range(4)]
            assert eventually(lambda: server.stats().unfinished == 4)
            full = httpx.post(url, json=body(2))
            assert full.status_code == 429
            assert int(full.headers["retry-after"]) >= 1
            other = {**body(2), "model": "birch/chat"}
            assert httpx.post(url, json=other).status_code == 200
            whole = {**other, "prompt": [PROMPT] * 4}  # all or none: three would have fitted
            assert httpx.post(url, json=whole).status_code == 429
            assert all(answer.result(30).status_code == 200 for answer in held)
        assert httpx.post(url, json=body(2)).status_code == 200


@pytest.mark.promise("drain")
def test_draining_finishes_what_runs_and_refuses_the_rest(catalogue: Catalogue, promised: Promised):
    server = RunningServer(catalogue, engine_options=SLOW)
    pid = server.engine_pid()
    with ThreadPoolExecutor(4) as pool:
        started = threading.Barrier(5)
        streams = [pool.submit(read_stream, server.url, 100, started.wait) for _ in range(4)]
        started.wait(10)
        server.drain(10)
        assert eventually(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
        answer = httpx.post(f"{server.url}/v1/completions", json=body(2))
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "the server is ending"
        assert [stream.result(20) for stream in streams] == [(expected_text(100), None)] * 4
    assert server.join()
    assert not is_alive(pid)
    figure = "4 of 4 streams whole, a new request 503, no engine left"
    promised("drain under streams", "in flight finish, new get 503", figure, kept=True)


@pytest.mark.promise("drain")
def test_a_drain_without_time_ends_everything_declared(catalogue: Catalogue, promised: Promised):
    server = RunningServer(catalogue, engine_options=SLOW)
    pid = server.engine_pid()
    began_s = time.monotonic()
    _, error = read_stream(server.url, 1900, lambda: server.drain(0))
    assert error is not None
    assert error["message"] == "the server is ending"
    assert server.join()
    took_s = time.monotonic() - began_s
    assert took_s < 4
    assert not is_alive(pid)
    promised("drain without time", "ends in < 4 s", f"{took_s:.2f} s, the stream ended with an error", kept=took_s < 4)


def test_sixty_four_streams_at_once(server: RunningServer):
    with ThreadPoolExecutor(64) as pool:
        results = list(pool.map(lambda _: read_stream(server.url, 100), range(128)))
    assert results == [(expected_text(100), None)] * 128
    assert eventually(lambda: all_free(server))
    metrics = httpx.get(server.url + "/metrics").text
    for gauge in ("num_requests_running", "num_requests_waiting"):
        assert f'blockc:{gauge}{{app="chat",tenant="acme"}} 0.0' in metrics


def test_a_slow_reader_does_not_hold_others_up(server: RunningServer):
    data = json.dumps(body(1900, stream=True, ignore_eos=True)).encode()
    with raw(server.url) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))
        began_s = time.monotonic()
        assert read_stream(server.url, 200) == (expected_text(200), None)
        assert time.monotonic() - began_s < 3
    assert eventually(lambda: all_free(server))
