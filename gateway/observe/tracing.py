"""Spans of requests and of jobs, by OpenTelemetry's own SDK; loaded only where ``[tracing]`` is on.

Owns what a span is called and which is whose parent. Where spans go, how many are kept and under which service name is
said by the SDK's own variables (``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_TRACES_SAMPLER``, ``OTEL_SERVICE_NAME``). Must
never know requests, journals or sockets: it is told times and attributes.
"""

import threading
import time
from collections.abc import Mapping
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway import __version__

Attributes = Mapping[str, str | int | float | bool]

_LAST: Final = 3.0
"""Seconds for what is left at the end."""
_BILLION: Final = 1_000_000_000
_W3C: Final = TraceContextTextMapPropagator()


def provider() -> TracerProvider:
    """What the environment describes: OTLP over HTTP, in the background, from a thread of its own."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 (tests export elsewhere)
        OTLPSpanExporter,
    )

    own = Resource({SERVICE_NAME: "comfy-gateway", SERVICE_VERSION: __version__})
    made = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return made


class Traced:
    """A span that goes on."""

    __slots__ = ("_span", "parent")

    def __init__(self, span: Span, parent: str) -> None:
        self._span = span
        self.parent = parent
        """How those name it whose parent it is: a ``traceparent`` of W3C Trace Context."""

    def end(self, attributes: Attributes, error: str = "", at: float | None = None) -> None:
        """It is over, since ``at`` (seconds since 1970) or now; ``error`` says why it failed."""
        self._span.set_attributes(dict(attributes))
        if error:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(None if at is None else round(at * _BILLION))


class Tracing:
    """Begins spans. ``provider`` is where they go when they end."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer: Tracer = provider.get_tracer("comfy-gateway", __version__)

    def request(self, parent: str) -> Traced:
        """A request has been accepted; ``parent`` is the client's own ``traceparent``, or empty."""
        return self._begin("request", parent, time.time(), SpanKind.SERVER)

    def begin(self, name: str, parent: str, at: float) -> Traced:
        """Something that began ``at`` seconds since 1970, within what ``parent`` names."""
        return self._begin(name, parent, at, SpanKind.INTERNAL)

    def close(self) -> None:
        """Send what is left, as far as that can be done in a few seconds: whoever collects may be away."""
        last = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        last.start()
        last.join(_LAST)

    def _begin(self, name: str, parent: str, at: float, kind: SpanKind) -> Traced:
        # What is no traceparent is none: the span then begins a trace.
        context = _W3C.extract({"traceparent": parent}, Context()) if parent else Context()
        span = self._tracer.start_span(name, context, kind, start_time=round(at * _BILLION))
        return Traced(span, parent_of(span))


def parent_of(span: Span) -> str:
    """The ``traceparent`` of what happens within a span."""
    found = span.get_span_context()
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"
