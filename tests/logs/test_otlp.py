"""OTLP/gRPC as its specification has it: what is exported is stored, and answered so that exporters do right."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import grpc
import psycopg
import pytest
from kronos.logs.v1 import logs_pb2 as pb
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as otlp

from kronos_db.logs.otlp import MOST_BYTES
from tests.logs.records import attributes_of, everything, export, exporter, fill, logs, service_name
from tests.parts import serving as parts
from tests.parts.refusal import read, refused
from tests.parts.serving import Serving


def test_what_is_exported_is_found(serving: Serving) -> None:
    service = service_name()
    request = export(service, 3)
    records = request.resource_logs[0].scope_logs[0].log_records
    fill(records[0].body, {"event": "login", "n": 1})
    records[1].trace_id = records[1].span_id = b""
    records[2].trace_id, records[2].span_id = bytes(16), bytes(8)

    answer = exporter(serving).Export(request, timeout=10)

    assert answer == otlp.ExportLogsServiceResponse(), "no partial success when nothing was refused"
    stub = logs(serving)
    page = stub.QueryLogs(pb.QueryLogsRequest(filter=pb.LogFilter(service=service)), timeout=10)
    found = {attributes_of(each)["number"]: each for each in page.records}
    assert (found[0].trace_id, found[0].span_id) == (records[0].trace_id.hex(), records[0].span_id.hex())
    assert {entry.key for entry in found[0].body.kvlist_value.values} == {"event", "n"}
    assert [(found[n].trace_id, found[n].span_id) for n in (1, 2)] == [("", "")] * 2
    assert found[1].time.seconds * 10**9 + found[1].time.nanos == records[1].time_unix_nano
    (origin,) = page.origins
    assert (origin.service, origin.scope_name, origin.scope_version) == (service, "tests", "1.0")
    assert attributes_of(origin) == {"service.name": service, "host.name": "host-1"}


def test_a_resource_without_a_name_has_one(serving: Serving) -> None:
    request = export("x", 1)
    del request.resource_logs[0].resource.attributes[:]
    mark = service_name()
    request.resource_logs[0].scope_logs[0].log_records[0].event_name = mark
    exporter(serving).Export(request, timeout=10)
    assert len(everything(logs(serving), "unknown_service", event_name=mark)) == 1


def test_nothing_is_exported_well(serving: Serving) -> None:
    empty = otlp.ExportLogsServiceRequest()
    empty.resource_logs.add().scope_logs.add()
    for request in (otlp.ExportLogsServiceRequest(), empty):
        assert exporter(serving).Export(request, timeout=10) == otlp.ExportLogsServiceResponse()


def test_gzip(serving: Serving) -> None:
    service = service_name()
    request = export(service, 2000)
    assert len(gzip.compress(request.SerializeToString())) < request.ByteSize() / 2
    exporter(serving).Export(request, timeout=10, compression=grpc.Compression.Gzip)
    assert len(everything(logs(serving), service)) == 2000


def test_it_takes_64_mib_and_other_methods_do_not(serving: Serving) -> None:
    service = service_name()
    request = export(service, 40)
    for record in request.resource_logs[0].scope_logs[0].log_records:
        record.body.string_value = "x" * 200_000
    assert request.ByteSize() > 7 * 1024 * 1024
    exporter(serving).Export(request, timeout=30)
    assert len(everything(logs(serving), service)) == 40

    request = export(service, 1)
    request.resource_logs[0].scope_logs[0].log_records[0].body.string_value = "x" * MOST_BYTES
    found = refused(lambda: exporter(serving).Export(request, timeout=30))
    # Without RetryInfo: an exporter drops it, and does not send it for ever.
    assert (found.code, found.reason, found.retry) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE", None)
    users = serving.channel_of("operator").unary_unary("/kronos.users.v1.UsersService/GetUser")
    assert refused(lambda: users(b"x" * (5 * 1024 * 1024), timeout=10)).reason == "MESSAGE_TOO_LARGE"


def test_what_is_no_export_is_not_to_be_retried(serving: Serving) -> None:
    method = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
    call = serving.channel_of("operator").unary_unary(method)
    found = refused(lambda: call(b"\xff\xff", timeout=10))
    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "MESSAGE_MALFORMED")


def test_a_full_server_says_when_to_come_back(tmp_path: Path, database: str) -> None:
    serving = Serving(tmp_path, database, domain_concurrent_calls=1)
    serving.start()
    try:
        with psycopg.connect(database) as connection:
            exporter(serving).Export(export("x", 1), timeout=30)
            connection.execute("LOCK TABLE logs.record IN ACCESS EXCLUSIVE MODE")
            waiting = exporter(serving).Export.future(export("x", 1, seed=1), timeout=30)
            found = None
            give_up = time.monotonic() + 10
            while found is None and time.monotonic() < give_up:
                try:
                    exporter(serving).Export(export("x", 1, seed=2), timeout=0.5)
                except grpc.RpcError as error:
                    if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:  # type: ignore[attr-defined]  # not in the stubs
                        found = read(error)
            connection.rollback()
            assert waiting.result() == otlp.ExportLogsServiceResponse()
        assert found is not None
        assert (found.reason, found.retry is not None) == ("OVERLOADED", True)
    finally:
        serving.stop()


def test_callers_are_let_in_by_the_policy(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    otel = '["opentelemetry.proto.collector.logs.v1.LogsService/Export"]'
    monkeypatch.setattr(parts, "CALLERS", {"operator": '["*"]', "collector": otel})
    serving = Serving(tmp_path, database)
    serving.start()
    try:
        exporter(serving, "collector").Export(export("x", 1), timeout=10)
        denied = refused(lambda: logs(serving, "collector").QueryLogs(pb.QueryLogsRequest(), timeout=10))
        assert denied.reason == "METHOD_NOT_ALLOWED"
        stranger = serving.channel.unary_unary("/opentelemetry.proto.collector.logs.v1.LogsService/Export")
        assert refused(lambda: stranger(b"", timeout=10)).reason == "CREDENTIAL_INVALID"
    finally:
        serving.stop()
