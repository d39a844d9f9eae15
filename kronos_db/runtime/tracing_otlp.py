"""Records spans with OpenTelemetry's SDK and sends them by OTLP/gRPC; imported only where traces are on.

Attributes are those of OpenTelemetry's semantic conventions for RPC and databases, and `kronos.…` where these have no
name. None holds anything of a request's body: methods, statements and callers by their names, codes, and counts.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from kronos_db.runtime.tracing import Attributes, Place, Span, Trace

_log = structlog.get_logger(__name__)
# The conventions whose names are used here.
_SCHEMA = "https://opentelemetry.io/schemas/1.44.0"


class OtlpTracer:
    """The spans of a process, sent to `endpoint`, or where OTEL_EXPORTER_OTLP_ENDPOINT says.

    `ratio` of the traces that begin here are recorded, and those whose caller records them; without it
    OTEL_TRACES_SAMPLER decides. Sends from a thread of its own; what comes while 2,048 spans wait takes the place of
    the oldest.
    """

    def __init__(self, service: str | None, version: str, endpoint: str | None, ratio: float | None) -> None:
        resource = _resource(service, version)
        sampler: Sampler | None = None if ratio is None else ParentBased(TraceIdRatioBased(ratio))
        self._provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        # What is linked with recorded spans is recorded too, whatever would be decided of it alone.
        self._linked = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint))
        self._provider.add_span_processor(processor)
        self._linked.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("kronos_db", version, _SCHEMA)
        self._linking = self._linked.get_tracer("kronos_db", version, _SCHEMA)

    def start(self, method: str, caller: Place | None) -> Trace:
        """Begin the span of a call of `method`, below the caller's."""
        attributes = {"rpc.system.name": "grpc", "rpc.method": method}
        found = self._tracer.start_span(method, _context(caller), SpanKind.SERVER, attributes)
        place = _place(found.get_span_context())
        if found.is_recording():
            return Trace(place.trace_id, place.span_id, _Recorded(found, self._tracer, self._linking))
        return Trace(place.trace_id, place.span_id)

    def stop(self, limit: float) -> None:
        """Send what was recorded, and give up after `limit` seconds."""
        # On a thread: the SDK waits for a receiver that is away as long as it likes.
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(limit)
        if sending.is_alive():
            _log.warning("the last spans were not taken in time", seconds=limit)


class _Recorded:
    """A span of OpenTelemetry's."""

    def __init__(self, span: trace.Span, tracer: trace.Tracer, linking: trace.Tracer) -> None:
        self.span = span
        self._tracer = tracer
        self._linking = linking

    @property
    def place(self) -> Place:
        return _place(self.span.get_span_context())

    def child(self, name: str, attributes: Attributes, *, calls_out: bool) -> Span:
        """Begin a part of it."""
        begun = self._tracer.start_span(name, trace.set_span_in_context(self.span), _kind(calls_out), attributes)
        return _Recorded(begun, self._tracer, self._linking)

    def joined(self, others: Sequence[Span]) -> Span:
        """Return what stands for it and `others` together."""
        return _Joined([self.span, *(other.span for other in others if isinstance(other, _Recorded))], self._linking)

    def set(self, attributes: Attributes) -> None:
        """Say more about it."""
        self.span.set_attributes(attributes)

    def fail(self, kind: str) -> None:
        """Take note that it failed."""
        self.span.set_attribute("error.type", kind)
        self.span.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        """Take note that it is over."""
        self.span.end()


class _Joined:
    """Several spans at once: no span of its own."""

    def __init__(self, spans: Sequence[trace.Span], tracer: trace.Tracer) -> None:
        self._spans = spans
        self._tracer = tracer

    @property
    def place(self) -> Place:
        return _place(self._spans[0].get_span_context())

    def child(self, name: str, attributes: Attributes, *, calls_out: bool) -> Span:
        """Begin what is done for all of them: a trace of its own, linked with each, and each with it."""
        links = [Link(span.get_span_context()) for span in self._spans]
        counted = {**attributes, "kronos.calls": len(self._spans)}
        # An empty context, so that it has no parent.
        begun = self._tracer.start_span(name, Context(), _kind(calls_out), counted, links)
        for span in self._spans:
            span.add_link(begun.get_span_context())
        return _Recorded(begun, self._tracer, self._tracer)

    def joined(self, others: Sequence[Span]) -> Span:
        """Return what stands for all of these and `others` together."""
        more = [other.span for other in others if isinstance(other, _Recorded)]
        return _Joined([*self._spans, *more], self._tracer)

    def set(self, _attributes: Attributes) -> None:
        """Say nothing: what is done together tells of itself."""

    def fail(self, _kind: str) -> None:
        """Say nothing, as above."""

    def end(self) -> None:
        """Nothing ends."""


def _resource(service: str | None, version: str) -> Resource:
    """Return what all spans are of; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES are read here."""
    resource = Resource.create({"service.version": version, "service.instance.id": str(uuid4())})
    if service is None and not str(resource.attributes["service.name"]).startswith("unknown_service"):
        return resource
    return resource.merge(Resource({"service.name": service or "kronos-db"}))


def _kind(calls_out: bool) -> SpanKind:
    return SpanKind.CLIENT if calls_out else SpanKind.INTERNAL


def _context(caller: Place | None) -> Any:
    """Return the caller's place as OpenTelemetry's context."""
    if caller is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED if caller.sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([caller.state]) if caller.state else None
    remote = SpanContext(int(caller.trace_id, 16), int(caller.span_id, 16), True, flags, state)
    return trace.set_span_in_context(NonRecordingSpan(remote), Context())


def _place(found: SpanContext) -> Place:
    return Place(trace.format_trace_id(found.trace_id), trace.format_span_id(found.span_id), found.trace_flags.sampled)
