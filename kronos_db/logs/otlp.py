"""OTLP/gRPC for logs: what OpenTelemetry exporters call, into the same store.

Specification: opentelemetry.io/docs/specs/otlp (1.x). Partial success exactly when records were refused. Retryable
codes are those of what a retry mends; RESOURCE_EXHAUSTED is one only with RetryInfo, which an overload has and a
message that is too large has not. A retried export makes no duplicates: its content is its `request_id`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceServicer

from kronos_db.logs import model
from kronos_db.logs.intake import Intake, Taking, attributes_of, read_otlp
from kronos_db.logs.service import RetentionCopy
from kronos_db.logs.store import LogsStore
from kronos_db.logs.values import Spelling
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.terms import on_terms

SERVICE = "opentelemetry.proto.collector.logs.v1.LogsService"
MOST_BYTES = 64 * 1024 * 1024
# Seconds for which the same export is answered as before: exporters give up long before.
WINDOW = 3600.0
_UNKNOWN = "unknown_service"
_LONGEST_NAME = 256
# So many refusals are told in words.
_TOLD = 5


class ExportService(LogsServiceServicer):
    """The one handler of OTLP's LogsService."""

    def __init__(self, store: LogsStore, intake: Intake, retention: RetentionCopy) -> None:
        self._store = store
        self._intake = intake
        self._retention = retention

    @on_terms(domain="logs", most_bytes=MOST_BYTES, checks_text=True)
    def Export(self, request: ExportLogsServiceRequest, context: object) -> ExportLogsServiceResponse:
        """Store what an exporter sends, except the records that break a rule."""
        call = Call.of(context)
        content = self._intake.digest(b"Export", request.SerializeToString(deterministic=True))
        call.identify(UUID(bytes=content), content, WINDOW)
        taking = self._intake.begin(self._retention.now())
        for resource_logs in request.resource_logs:
            resource = resource_logs.resource
            resource_content = resource.SerializeToString(deterministic=True)
            for scope_logs in resource_logs.scope_logs:
                _take(taking, resource, resource_content, scope_logs)
        batch = taking.done()
        mutation: Mutation[model.Batch, ExportLogsServiceResponse] = call.mutation(ExportLogsServiceResponse, _answer)
        if not taking.taken:
            return ExportLogsServiceResponse()
        response = self._store.write(batch, mutation)
        self._intake.noted(batch)
        return response


def _take(taking: Taking, resource: Any, resource_content: bytes, scope_logs: Any) -> None:
    scope = scope_logs.scope

    def make(name: str, spelling: Spelling) -> model.Origin:
        return model.Origin(
            name,
            _service(resource.attributes),
            attributes_of(resource.attributes, spelling, ".resource.attributes"),
            _name(scope.name, ".scope.name"),
            _name(scope.version, ".scope.version"),
            attributes_of(scope.attributes, spelling, ".scope.attributes"),
        )

    try:
        origin = taking.origin((b"otlp", resource_content, scope.SerializeToString(deterministic=True)), make)
    except model.RefusedError as refused:
        taking.refuse(len(scope_logs.log_records), refused)
        return
    taking.add(origin, scope_logs.log_records, read_otlp)


def _service(attributes: Sequence[Any]) -> str:
    named = next((item.value.string_value for item in attributes if item.key == "service.name"), "")
    return _name(named, ".resource.attributes") or _UNKNOWN


def _name(text: str, where: str) -> str:
    if len(text) > _LONGEST_NAME:
        raise model.RefusedError("RECORD_TOO_LARGE", where, f"must not be longer than {_LONGEST_NAME} characters")
    if "\0" in text:
        raise model.RefusedError("TEXT_HAS_NUL", where, "must not contain U+0000")
    return text


def _answer(batch: model.Batch) -> ExportLogsServiceResponse:
    response = ExportLogsServiceResponse()
    if batch.refusals:
        told = [
            f"record {index}{field}: {reason}, {description}"
            for index, reason, field, description in batch.refusals[:_TOLD]
        ]
        more = len(batch.refusals) - len(told)
        response.partial_success.rejected_log_records = len(batch.refusals)
        response.partial_success.error_message = "; ".join(told) + (f"; and {more} more" if more else "")
    return response
