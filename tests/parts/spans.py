"""A receiver of OTLP traces, as a collector is one, that keeps what it is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.parts.eventually import eventually

Span = trace_pb2.Span


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Listens on a port of its own."""

    def __init__(self) -> None:
        self.requests: list[pb.ExportTraceServiceRequest] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(self, request: pb.ExportTraceServiceRequest, context: object) -> pb.ExportTraceServiceResponse:
        self.requests.append(request)
        return pb.ExportTraceServiceResponse()

    def stop(self) -> None:
        self._server.stop(0).wait(10)

    @property
    def spans(self) -> list[Any]:
        """All spans that have come."""
        return [
            span
            for request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def resources(self) -> list[dict[str, Any]]:
        """What the spans are of, for each process that has sent some."""
        found: dict[str, dict[str, Any]] = {}
        for request in list(self.requests):
            for each in request.resource_spans:
                attributes = {entry.key: entry.value.string_value for entry in each.resource.attributes}
                found[attributes["service.instance.id"]] = attributes
        return list(found.values())

    def of(self, trace_id: str) -> list[Any]:
        """The spans of a trace."""
        return [span for span in self.spans if span.trace_id.hex() == trace_id]

    def wait(self, wanted: Callable[[Any], bool], count: int = 1) -> list[Any]:
        """Return the spans for which `wanted` holds once there are `count`."""

        def found() -> list[Any]:
            return [span for span in self.spans if wanted(span)]

        eventually(lambda: len(found()) >= count, 30, lambda: sorted({span.name for span in self.spans}))
        return found()

    def root_of(self, trace_id: str) -> Any:
        """Return the span of a call of a trace, once it has come."""
        [root] = self.wait(lambda span: span.trace_id.hex() == trace_id and span.kind == Span.SPAN_KIND_SERVER)
        return root


def attributes_of(span: Any) -> Mapping[str, Any]:
    """Return the attributes of a span."""
    return {entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in span.attributes}
