"""Records and batches of the tests, of both contracts."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from kronos.logs.v1 import logs_pb2 as pb
from kronos.logs.v1.logs_pb2_grpc import LogsServiceStub
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as otlp
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub as OtlpStub

from tests.parts.serving import Serving

SECOND = 1_000_000_000


def logs(serving: Serving, caller: str = "operator") -> LogsServiceStub:
    """A stub of LogsService."""
    return LogsServiceStub(serving.channel_of(caller))


def exporter(serving: Serving, caller: str = "operator") -> Any:
    """A stub of OTLP's LogsService."""
    return OtlpStub(serving.channel_of(caller))


def service_name() -> str:
    """A service that no other test has."""
    return f"service-{uuid4().hex[:12]}"


def set_time(timestamp: Any, nanoseconds: int) -> None:
    timestamp.seconds, timestamp.nanos = divmod(nanoseconds, SECOND)


def record(body: str = "something happened", *, at: int | None = None, **fields: Any) -> pb.LogRecord:
    """A record as services write them; keyword `attributes` maps keys to Python values."""
    attributes = fields.pop("attributes", {})
    made = pb.LogRecord(severity=fields.pop("severity", 9), **fields)
    made.body.string_value = body
    set_time(made.time, time.time_ns() if at is None else at)
    for key, value in attributes.items():
        fill(made.attributes.add(key=key).value, value)
    return made


def fill(value: Any, item: Any) -> None:
    """Write a Python value into an empty Value or AnyValue."""
    if isinstance(item, bool):
        value.bool_value = item
    elif isinstance(item, str):
        value.string_value = item
    elif isinstance(item, int):
        value.int_value = item
    elif isinstance(item, float):
        value.double_value = item
    elif isinstance(item, bytes):
        value.bytes_value = item
    elif isinstance(item, list):
        value.array_value.SetInParent()
        for each in item:
            fill(value.array_value.values.add(), each)
    elif isinstance(item, dict):
        value.kvlist_value.SetInParent()
        for key, each in item.items():
            entry = value.kvlist_value.values.add()
            entry.key = key
            fill(entry.value, each)


def value_of(value: Any) -> Any:
    """Return a Value as the Python value that `fill` makes it of."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [value_of(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {entry.key: value_of(entry.value) for entry in value.kvlist_value.values}
    return getattr(value, kind)


def attributes_of(message: Any) -> dict[str, Any]:
    return {attribute.key: value_of(attribute.value) for attribute in message.attributes}


def write_request(service: str, records: Sequence[pb.LogRecord], **fields: Any) -> pb.WriteLogsRequest:
    return pb.WriteLogsRequest(origin=pb.Origin(service=service), records=records, **fields)


def bodies(records: Sequence[pb.LogRecord]) -> list[str]:
    return [each.body.string_value for each in records]


def everything(stub: LogsServiceStub, service: str, **fields: Any) -> list[pb.LogRecord]:
    """All records of a service, oldest first, page by page."""
    request = pb.QueryLogsRequest(
        filter=pb.LogFilter(service=service, **fields), order=pb.LOG_ORDER_TIME_ASC, page_size=1000
    )
    found: list[pb.LogRecord] = []
    while True:
        page = stub.QueryLogs(request, timeout=30)
        found += page.records
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def export(service: str, count: int, *, seed: int = 0, at: int | None = None) -> otlp.ExportLogsServiceRequest:
    """An export of so many records, as an OpenTelemetry SDK makes it."""
    chance = random.Random(seed)
    now = time.time_ns() if at is None else at
    request = otlp.ExportLogsServiceRequest()
    resource_logs = request.resource_logs.add()
    fill(resource_logs.resource.attributes.add(key="service.name").value, service)
    fill(resource_logs.resource.attributes.add(key="host.name").value, "host-1")
    scope_logs = resource_logs.scope_logs.add()
    scope_logs.scope.name, scope_logs.scope.version = "tests", "1.0"
    for number in range(count):
        made = scope_logs.log_records.add(
            time_unix_nano=now + number,
            observed_time_unix_nano=now + number,
            severity_number=chance.choice([5, 9, 9, 9, 13, 17]),
            severity_text="INFO",
            trace_id=chance.randbytes(16),
            span_id=chance.randbytes(8),
            flags=1,
        )
        made.body.string_value = f"PacketResponder {number} for block terminating"
        fill(made.attributes.add(key="http.request.method").value, "GET")
        fill(made.attributes.add(key="http.response.status_code").value, 200)
        fill(made.attributes.add(key="number").value, number)
    return request
