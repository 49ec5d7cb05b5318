"""`blockc bench`: what it sends, what it measures, how it compares."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from blockc.cli import main
from blockc.cli.load.arrivals import poisson, traced
from blockc.cli.load.client import Answer
from blockc.cli.load.figures import ALL, comparison, document, figures_of, percentile, read_document, worse
from blockc.diag import DiagnosticError

FIRST_S, TOKEN_S = 0.08, 0.01
KEY = "sk-canary-key"


class Handler(BaseHTTPRequestHandler):
    """As much of the API as a load needs: the first token after `FIRST_S`, the others every `TOKEN_S`."""

    seen: list[dict[str, Any]]
    delay_s: float = 0.0

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self._send(401, {"error": {"message": "a valid key is needed"}})
            return
        self._send(200, {"data": [{"id": "acme/chat", "max_model_len": 100}, {"id": "birch/chat"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        if body["model"] == "birch/chat":
            self._send(429, {"error": {"message": "too much"}})
            return
        self.send_response(200)
        self.end_headers()
        time.sleep(FIRST_S + self.delay_s)
        for number in range(body["max_tokens"]):
            time.sleep(TOKEN_S if number else 0)
            self.wfile.write(b'data: {"choices": [{"text": "x"}]}\n\n')
            self.wfile.flush()
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        self.wfile.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())

    def _send(self, status: int, content: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    Handler.seen = []
    Handler.delay_s = 0.0
    monkeypatch.setenv("BLOCKC_KEY", KEY)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def url(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_what_is_sent_and_measured(server: ThreadingHTTPServer, capsys) -> None:
    options = ["-n", "6", "--rate", "50", "--prompt", "20", "--output", "11", "--app", "acme/chat", "--json"]
    assert main(["bench", url(server), *options]) == 0
    out = capsys.readouterr()
    figures = json.loads(out.out)["figures"]["acme/chat"]
    assert (figures["requests"], figures["failed"]) == (6, 0)
    assert FIRST_S <= figures["ttft_p50_s"] < FIRST_S * 5
    assert TOKEN_S <= figures["tpot_p50_s"] < TOKEN_S * 5
    assert figures["e2e_p95_s"] >= FIRST_S + 10 * TOKEN_S
    assert len(Handler.seen) == 6
    assert len({tuple(body["prompt"]) for body in Handler.seen}) == 6, "no prompt is in anybody's cache"
    for body in Handler.seen:
        assert (len(body["prompt"]), body["max_tokens"], body["stream"], body["ignore_eos"]) == (20, 11, True, True)
    assert KEY not in out.out + out.err


def test_failures_are_counted_apart(server: ThreadingHTTPServer, capsys) -> None:
    assert main(["bench", url(server), "-n", "4", "--rate", "100", "--output", "3"]) == 0
    out = capsys.readouterr()
    assert "2 times: OSError: 429 too much" in out.err
    assert main(["bench", url(server), "-n", "2", "--rate", "100", "--app", "birch/chat"]) == 1


def test_against_a_saved_run(server: ThreadingHTTPServer, tmp_path: Path, capsys) -> None:
    load = ["bench", url(server), "-n", "5", "--rate", "50", "--output", "3", "--app", "acme/chat"]
    saved = tmp_path / "run.json"
    assert main([*load, "--save", str(saved)]) == 0
    assert main([*load, "--against", str(saved), "--tolerance", "200"]) == 0
    assert KEY not in saved.read_text()
    Handler.delay_s = 0.5
    capsys.readouterr()
    assert main([*load, "--against", str(saved), "--tolerance", "200"]) == 1
    assert "worse: TTFT p50 is" in capsys.readouterr().err
    assert main([*load, "--seed", "1", "--against", str(saved)]) == 1
    assert "another load: seed" in capsys.readouterr().err
    saved.write_text('{"figures": []}')
    assert main([*load, "--against", str(saved)]) == 1
    assert "no saved run" in capsys.readouterr().err


def test_what_is_wrong_is_said(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert main(["bench", url(server), "--app", "acme/cha"]) == 1
    assert "did you mean `acme/chat`?" in capsys.readouterr().err
    monkeypatch.delenv("BLOCKC_KEY")
    assert main(["bench", url(server)]) == 1
    assert "401" in capsys.readouterr().err
    assert main(["bench", "ftp://x"]) == 1
    assert main(["bench", "http://127.0.0.1:1"]) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://127.0.0.1:99999", "http://127.0.0.1:port", "ftp://x", "http://"]
)
def test_addresses_that_are_none(url: str, capsys) -> None:
    assert main(["bench", url]) == 1
    assert "BC109" in capsys.readouterr().err


def test_a_key_that_no_header_can_carry_is_not_shown(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    for key in ("sk-canary\n", "sk-canary\u20ac", "sk canary"):
        monkeypatch.setenv("BLOCKC_KEY", key)
        assert main(["bench", f"http://127.0.0.1:{server.server_port}", "-n", "1"]) == 1
        shown = capsys.readouterr()
        assert "BC109" in shown.err
        assert "canary" not in shown.err + shown.out


def test_late_requests_count_from_when_they_were_due(server: ThreadingHTTPServer, capsys) -> None:
    """With one at a time, the last of five that were due at once waited for four."""
    options = ["-n", "5", "--rate", "10000", "--output", "1", "--app", "acme/chat", "--concurrency", "1", "--json"]
    assert main(["bench", url(server), *options]) == 0
    assert json.loads(capsys.readouterr().out)["figures"][ALL]["ttft_p95_s"] >= 5 * FIRST_S


def test_arrivals() -> None:
    longest = {"a": 100, "b": 40}
    found = poisson(longest, requests=2000, rate=10, prompt_tokens=64, output_tokens=30, seed=3)
    assert found == poisson(longest, requests=2000, rate=10, prompt_tokens=64, output_tokens=30, seed=3)
    assert found != poisson(longest, requests=2000, rate=10, prompt_tokens=64, output_tokens=30, seed=4)
    assert found[-1].at_s == pytest.approx(200, rel=0.1)
    assert {(a.app, a.prompt_tokens, a.output_tokens) for a in found} == {("a", 64, 30), ("b", 20, 20)}


def test_traces(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:48.6805900,9,5\n2023-11-16 18:15:49.6805900,1,1\n"
    )
    found = traced({"a": 100}, path, requests=2, speed=2.0, seed=0)
    assert [(a.at_s, a.prompt_tokens, a.output_tokens) for a in found] == [(0.0, 56, 44), (1.0, 9, 5)]
    for text in ("a,b\n1,2\n", "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n", "", "TIMESTAMP\n"):
        path.write_text(text)
        with pytest.raises(DiagnosticError):
            traced({"a": 100}, path, requests=2, speed=1.0, seed=0)
    with pytest.raises(DiagnosticError):
        traced({"a": 100}, tmp_path / "none.csv", requests=2, speed=1.0, seed=0)


def test_percentiles() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0], 0.99) == 3.0
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]


def answer(ttft_s: float, *, error: str | None = None) -> Answer:
    return Answer(
        app="a",
        error=error,
        prompt_tokens=1,
        output_tokens=0 if error else 11,
        ttft_s=ttft_s,
        e2e_s=ttft_s + 1,
        ended_s=2,
    )


def test_comparison() -> None:
    before = figures_of([answer(1.0), answer(1.0)])
    now = figures_of([answer(1.5), answer(1.5)])
    assert any("+50.0%" in line for line in comparison(now, before))
    assert [line for line in worse(now, before, 0.4) if line.startswith("TTFT")] == [
        "TTFT p50 is 50.0% worse",
        "TTFT p95 is 50.0% worse",
    ]
    assert list(worse(before, now, 0.0)) == [], "better is not worse"
    assert list(worse(figures_of([answer(1.0), answer(1.0, error="x")]), before, 9.0)) == [
        "1 requests failed, 0 before"
    ]
    assert read_document(json.loads(json.dumps(document(now, {"seed": 1})))) == (now, {"seed": 1})
    with pytest.raises(ValueError, match="no numbers"):
        read_document(document(now, {}) | {"figures": {"a": vars_of(now) | {"failed": "x"}}})


def vars_of(found: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(found["a"], name) for name in found["a"].__dataclass_fields__}
