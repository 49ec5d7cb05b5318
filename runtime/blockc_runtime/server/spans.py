"""Requests as OpenTelemetry's spans: one for the request, and in it queue, prefill and decode.

In: requests that have ended. Out: spans with the times that they had. A client's ``traceparent`` is continued. Where
spans go, and how many, is said by OpenTelemetry's own variables (``OTEL_EXPORTER_OTLP_ENDPOINT``,
``OTEL_TRACES_SAMPLER``). Invariant: nothing of OpenTelemetry is imported unless spans are asked for; no attribute holds
a key, a prompt or an output.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from blockc.diag import DiagnosticError, Diagnostics
from blockc_runtime.server.access import Exchange, Work

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_NAME: Final = "blockc"
_FLUSH_S: Final = 2.0
# Names of the conventions for generative models where there are some, and our own.
_ATTRIBUTES: Final = {
    "model": "gen_ai.request.model",
    "id": "gen_ai.response.id",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "tenant": "blockc.caller",
}


def request_spans() -> Spans:
    """Send spans in the background, over OTLP. Raises `DiagnosticError` (BC905) without OpenTelemetry."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        problems = Diagnostics()
        help_ = "install it: pip install 'blockc[otel]'"
        problems.report("BC905", f"spans need OpenTelemetry ({error.name} is not installed)", help=help_)
        raise DiagnosticError(problems) from None
    name = os.environ.get("OTEL_SERVICE_NAME", _NAME)
    provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Spans(provider)


class Spans:
    """Makes spans of what has ended. Takes microseconds: they are sent by a thread of the provider's."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer(_NAME)
        self._propagator = TraceContextTextMapPropagator()

    def tell(self, exchange: Exchange) -> None:
        """One request, with its parts if an engine worked on it."""
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        span = self._tracer.start_span(
            f"{exchange.method} {exchange.path}" if exchange.work is not None else exchange.method,
            context=self._propagator.extract(exchange.trace),
            kind=SpanKind.SERVER,
            start_time=_ns(exchange, exchange.began_s),
            attributes=_attributes(exchange),
        )
        if exchange.status >= 500:
            span.set_status(StatusCode.ERROR)
        inside = set_span_in_context(span)
        for name, start_s, end_s, attributes in _parts(exchange.work):
            part = self._tracer.start_span(
                name, context=inside, start_time=_ns(exchange, start_s), attributes=attributes
            )
            part.end(_ns(exchange, end_s))
        span.end(_ns(exchange, exchange.ended_s))

    def close(self) -> None:
        """Send what is left; a collector that does not answer holds nobody up for long."""
        ending = threading.Thread(target=self._provider.shutdown, name="spans-end", daemon=True)
        ending.start()
        ending.join(_FLUSH_S)


def _attributes(exchange: Exchange) -> dict[str, Any]:
    found: dict[str, Any] = {
        "http.request.method": exchange.method,
        "url.path": exchange.path,
        "http.response.status_code": exchange.status,
        "blockc.request_id": exchange.request_id,
    }
    found |= {_ATTRIBUTES[name]: value for name, value in exchange.notes.items() if name in _ATTRIBUTES}
    if (model := exchange.notes.get("model")) is not None:
        found["blockc.tenant"], _, found["blockc.app"] = model.partition("/")
    if exchange.work is not None:
        found["blockc.segments"] = exchange.work.segments
    return found


def _parts(work: Work | None) -> Iterator[tuple[str, float, float, dict[str, Any]]]:
    """Name, beginning, end and attributes. A part that did not come to its end ends with the request."""
    if work is None:
        return
    passed = {"blockc.segments": work.segments}
    moments = (work.submitted_s, work.started_s, work.first_token_s, work.ended_s)
    for name, start_s, end_s in zip(("queue", "prefill", "decode"), moments, moments[1:], strict=False):
        if start_s is not None:
            yield name, start_s, work.ended_s if end_s is None else end_s, {} if name == "queue" else passed


def _ns(exchange: Exchange, monotonic_s: float) -> int:
    return int(exchange.unix_s(monotonic_s) * 1e9)
