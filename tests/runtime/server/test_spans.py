"""Spans of requests, in OpenTelemetry's own memory: whose they are, what they took, and nothing of what was said."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockc_runtime.server.auth import KeyRing
from blockc_runtime.server.catalogue import Catalogue
from blockc_runtime.server.keys_file import load_keys
from tests.runtime.server.running import RunningServer, running
from tests.runtime.server.test_access import CANARY, SECRET_WORDS, TENANTS, keys_file, post
from tests.runtime.server.test_command import serving
from tests.support.processes import eventually

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Seen:
    """A server whose spans are kept."""

    def __init__(self, server: RunningServer, exporter: Any) -> None:
        self.server, self._exporter = server, exporter

    def of(self, count: int) -> dict[str, Any]:
        """The next spans by name, once there are so many."""
        assert eventually(lambda: len(self._exporter.get_finished_spans()) >= count)
        spans = self._exporter.get_finished_spans()
        self._exporter.clear()
        assert len(spans) == count
        return {"request" if span.parent is None or span.parent.is_remote else span.name: span for span in spans}


@pytest.fixture(scope="module")
def seen(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    pytest.importorskip("opentelemetry.sdk.trace", reason="OpenTelemetry's SDK is not installed: blockc[otel]")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from blockc_runtime.server.spans import Spans

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    keys = keys_file(tmp_path_factory.mktemp("keys") / "keys.json", acme=[CANARY])
    with running(
        catalogue,
        keys=KeyRing(load_keys(keys, TENANTS)),
        watchers=(Spans(provider).tell,),
        engine_options=("--step-s", "0.01"),
    ) as server:
        yield Seen(server, exporter)


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_and_its_parts(seen: Seen, stream: bool):
    answer = post(seen.server, CANARY, max_tokens=9, stream=stream)
    spans = seen.of(4)
    request = spans["request"]
    assert request.name == "POST /v1/completions"
    assert request.kind.name == "SERVER"
    found = dict(request.attributes)
    assert found["http.response.status_code"] == 200
    assert found["blockc.request_id"] == answer.headers["x-request-id"]
    assert (found["blockc.tenant"], found["blockc.app"], found["blockc.caller"]) == ("acme", "chat", "acme")
    assert (found["gen_ai.request.model"], found["gen_ai.usage.output_tokens"]) == ("acme/chat", 9)
    assert found["gen_ai.usage.input_tokens"] > 3
    assert found["blockc.segments"] == (0,)
    assert {name: span.parent.span_id for name, span in spans.items() if name != "request"} == dict.fromkeys(
        ("queue", "prefill", "decode"), request.context.span_id
    )
    moments = [request.start_time, spans["queue"].start_time]
    for name in ("queue", "prefill", "decode"):
        assert spans[name].start_time == moments[-1] or name == "queue"
        moments.append(spans[name].end_time)
    moments.append(request.end_time)
    assert moments == sorted(moments)
    assert spans["decode"].attributes["blockc.segments"] == (0,)


def test_the_part_of_the_steps_is_as_long_as_they_are(seen: Seen):
    """Eight steps of 10 ms, by two clocks. A server that is late to see the first token begins its part late."""

    def length_ns() -> int:
        post(seen.server, CANARY, max_tokens=9)
        decode = seen.of(4)["decode"]
        return decode.end_time - decode.start_time

    assert any(length_ns() >= 7 * 10_000_000 for _ in range(3))


def test_a_clients_trace_is_continued(seen: Seen):
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
    post(seen.server, CANARY, headers, max_tokens=2)
    for span in seen.of(4).values():
        assert f"{span.context.trace_id:032x}" == TRACE
        assert span.context.trace_state.get("vendor") == "1"
    post(seen.server, CANARY, {"traceparent": f"00-{TRACE}-{PARENT}-00"}, max_tokens=2)
    post(seen.server, CANARY, max_tokens=2)
    (request,) = [span for name, span in seen.of(4).items() if name == "request"]
    assert request.parent is None, "what is not to be sampled is not"


@pytest.mark.parametrize("words", ["00-0-0-01", f"00-{'0' * 32}-{PARENT}-01", "x" * 5000, "é", ""])
def test_a_trace_that_is_none_begins_a_new_one(seen: Seen, words: str):
    post(seen.server, CANARY, {"traceparent": words.encode()}, max_tokens=2)
    assert seen.of(4)["request"].parent is None


def test_a_refusal_has_no_parts(seen: Seen):
    post(seen.server, CANARY, max_tokens=-1)
    post(seen.server, CANARY + "x")
    assert eventually(lambda: len(seen._exporter.get_finished_spans()) == 2)
    invalid, unknown = seen._exporter.get_finished_spans()
    seen._exporter.clear()
    assert dict(invalid.attributes)["http.response.status_code"] == 400
    assert dict(unknown.attributes)["http.response.status_code"] == 401
    assert "blockc.caller" not in dict(unknown.attributes)


def test_nothing_of_what_was_said_and_no_key(seen: Seen):
    answer = post(seen.server, CANARY, max_tokens=9)
    text = json.dumps([json.loads(span.to_json()) for span in seen.of(4).values()])
    assert CANARY not in text
    assert SECRET_WORDS.split()[1] not in text
    assert answer.json()["choices"][0]["text"] not in text


def test_nothing_is_imported_unless_it_is_asked_for():
    code = (
        "import sys, blockc_runtime.server.serve\n"
        "asked = ('opentelemetry.sdk', 'opentelemetry.exporter')\n"  # FastAPI itself imports the interface
        "sys.exit(', '.join(sorted(name for name in sys.modules if name.startswith(asked))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_the_package_it_is_a_diagnostic(world_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    from blockc.diag import DiagnosticError
    from blockc_runtime.server.spans import request_spans

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(DiagnosticError, match="spans need OpenTelemetry") as caught:
        request_spans()
    assert "blockc[otel]" in str(next(iter(caught.value.diagnostics)).help)


def test_a_collector_that_is_not_there_holds_nobody_up(world_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="no exporter is installed: blockc[otel]")
    import httpx

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with serving(world_files[0], "--otel", "--drain", "0") as command:
        body = {"model": "acme/chat", "prompt": [5, 6], "max_tokens": 3}
        assert httpx.post(f"{command.url()}/v1/completions", json=body).status_code == 200
        code, _ = command.end(within_s=15)
        assert code == 0
