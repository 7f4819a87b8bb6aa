"""Spans for OpenTelemetry: each request, and in it the time in the queue and the time of computing.

Spans are made when a request has ended, of times that were taken anyway. Where they go is what OpenTelemetry's own
variables say (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ..core.errors import MissingExtraError
from .guard import Entry


class Tracer:
    """Sends spans.

    Args:
        version: of this package.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
    """

    def __init__(self, version: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise MissingExtraError("OTEL_EXPORTER_OTLP_ENDPOINT", install="'llmasos[otel]'") from error
        named = Resource({"service.name": "llmasos", "service.version": version})
        self._provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("llmasos", version)

    def ended(self, headers: Mapping[str, str], entry: Entry, began: float, told: Mapping[str, Any]) -> None:
        """Make the spans of a request that began then, by ``time.monotonic``."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        shift = time.time_ns() - time.monotonic_ns()

        def at(moment: float) -> int:
            return int(moment * 1e9) + shift

        context = TraceContextTextMapPropagator().extract(dict(headers))  # the client's own span, where it names one
        request = self._tracer.start_span(f"{told['method']} {told['route']}", context, trace.SpanKind.SERVER,
                                          _attributes(told), start_time=at(began))  # fmt: skip
        if told["status"] >= 500:
            request.set_status(trace.StatusCode.ERROR)
        inside = trace.set_span_in_context(request)
        for arrived, begun, ended in entry.times:
            for name, start, stop in (("queue", arrived, begun or ended), ("compute", begun, ended)):
                if start is not None:
                    self._tracer.start_span(name, inside, start_time=at(start)).end(at(stop))
        request.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _attributes(told: Mapping[str, Any]) -> dict[str, Any]:
    names = {"method": "http.request.method", "route": "http.route", "status": "http.response.status_code",
             "id": "llmasos.request.id", "key": "llmasos.key", "model": "llmasos.model",
             "tokens": "llmasos.tokens"}  # fmt: skip
    return {name: told[short] for short, name in names.items() if told.get(short) not in (None, "")}
