"""The rows of the logs domain: intake beside raw COPY, queries on five million records, idle tails."""

from __future__ import annotations

import base64
import json
import random
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import grpc
import psycopg
from kronos.logs.v1 import logs_pb2 as pb
from kronos.logs.v1.logs_pb2_grpc import LogsServiceStub
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as otlp

from benchmarks.batches import Job, Sent
from benchmarks.stand import Row, Stand, at_least, at_most, echo, run_load, settle, stand
from kronos_db.logs.intake import Intake, read_otlp
from kronos_db.logs.keys import Keys
from kronos_db.logs.model import DAY, MINUTE, Origin, Retention

_BATCH = 1_000
_ROUNDS = 3
_SECONDS = 5.0
# Calls or streams that bring batches at a time.
_LANES = 4
_STORED = 5_000_000
_PASSED = 5_000_000
_TAILS = 1_000
_SERVICES = 20
_COPY = """COPY logs.record (
    batch, part, keep_days, severity, time, own_time, observed_time, service, origin, trace_id, span_id, flags, dropped,
    severity_text, event_name, structured, body, attributes, subject
) FROM STDIN"""
_WRITE = "/kronos.logs.v1.LogsService/WriteLogs"
_QUERY = "/kronos.logs.v1.LogsService/QueryLogs"
_AGGREGATE = "/kronos.logs.v1.LogsService/AggregateLogs"


def rows() -> Iterator[Row]:
    """Measure."""
    with stand() as on:
        yield from _intake(on)
        yield from _single(on)
        yield from _memory(on)
    with stand(caller_streams=2 * _TAILS) as on:
        _fill(on)
        yield from _queries(on)
        yield from _tails(on)


def _intake(on: Stand) -> Iterator[Row]:
    """Bring batches of the same records in by COPY, IngestLogs and Export, in turn."""
    export = _export(_BATCH)
    copied: list[float] = []
    sent: dict[str, list[float]] = {"ingest": [], "export": []}
    batches: dict[Literal["ingest", "export"], bytes] = {
        "ingest": _ingest(export),
        "export": export.SerializeToString(),
    }
    _send(on, "export", batches["export"], seconds=1.0)
    with psycopg.connect(_dsn(on), autocommit=True) as connection:
        for _ in range(_ROUNDS):
            settle()
            copied.append(_copy_rate(connection, _rows_of(export)))
            for kind, batch in batches.items():
                settle()
                done = _send(on, kind, batch)
                sent[kind].append(done.batches * _BATCH / done.seconds)
    floor = statistics.median(copied)
    for kind, name in (("ingest", "IngestLogs"), ("export", "Export (OTLP)")):
        value = statistics.median(sent[kind])
        yield at_least(f"logs: {name}, batches of 1,000, beside raw COPY", value, "records/s", floor, 0.5)


def _single(on: Stand) -> Iterator[Row]:
    """Load WriteLogs of one record and the bare echo in turn."""
    request = pb.WriteLogsRequest(origin=pb.Origin(service="single"))
    record = request.records.add(severity=9, severity_text="INFO")
    record.body.string_value = "user signed in"
    record.time.seconds = int(time.time())
    record.attributes.add(key="http.request.method").value.string_value = "GET"
    record.attributes.add(key="http.response.status_code").value.int_value = 200
    requests = [request.SerializeToString()]
    answer = LogsServiceStub(on.channel).WriteLogs(request, metadata=on.metadata).ByteSize()
    writes, floors, latency = [], [], []
    with echo(on.settings.worker_threads, answer) as target:
        for _ in range(_ROUNDS):
            settle()
            floors.append(run_load(target, "/bench.Echo/Echo", requests, 4.0, 64, on.metadata).calls_per_second)
            settle()
            outcome = on.load(_WRITE, requests)
            writes.append(outcome.calls_per_second)
            latency.append(outcome.p50_ms)
    name = "logs: WriteLogs of one record, 64 in flight, 1 process"
    yield at_least(name, statistics.median(writes), "calls/s", statistics.median(floors), 0.45)
    yield Row("logs: WriteLogs of one record, p50", statistics.median(latency), "ms")


def _memory(on: Stand) -> Iterator[Row]:
    """Let records pass, and compare memory after the first tenth and after all."""
    batch = _ingest(_export(_BATCH))
    passed, before = 0, 0.0
    while passed < _PASSED:
        passed += _send(on, "ingest", batch, seconds=600.0, most=_PASSED // _BATCH // 10, warm_up=0.0).batches * _BATCH
        before = before or on.resident_megabytes()
        print(f"\rrecords that passed: {passed:,} of {_PASSED:,}", end="", file=sys.stderr)
    print(file=sys.stderr)
    name = f"logs: resident memory after {_PASSED:,} records, beside {_PASSED // 10:,}"
    yield at_most(name, on.resident_megabytes(), "MB", before, 1.1)


def _queries(on: Stand) -> Iterator[Row]:
    chance = random.Random(1)
    last = [
        pb.QueryLogsRequest(page_size=100, filter=pb.LogFilter(service=f"service{number}")).SerializeToString()
        for number in range(_SERVICES)
    ]
    traces = [
        pb.QueryLogsRequest(filter=pb.LogFilter(trace_id=_trace(chance.randrange(_STORED)))).SerializeToString()
        for _ in range(500)
    ]
    for name, requests in (("last 100 of a service", last), ("one trace id", traces)):
        p50 = statistics.median(on.load(_QUERY, requests, in_flight=1).p50_ms for _ in range(_ROUNDS))
        yield Row(f"logs: QueryLogs of {_STORED:,}, {name}, p50", p50, "ms", bar="≤ 5 ms", met=p50 <= 5)
    day = pb.AggregateLogsRequest()
    day.time_until.seconds = int(time.time()) // 60 * 60 + 60
    day.time_from.seconds = day.time_until.seconds - 86_400
    day.interval.seconds = 60
    grouped = pb.AggregateLogsRequest()
    grouped.CopyFrom(day)
    grouped.grouping = pb.LOG_GROUPING_SEVERITY
    for name, request in (("", day), (" and severity", grouped)):
        p50 = on.load(_AGGREGATE, [request.SerializeToString()], in_flight=1).p50_ms
        yield Row(f"logs: AggregateLogs of a day by minute{name}, p50", p50, "ms", bar="≤ 200 ms", met=p50 <= 200)


def _tails(on: Stand) -> Iterator[Row]:
    """Load a unary call with and without idle tails in turn, and look at threads."""
    request = pb.QueryLogsRequest(page_size=1, filter=pb.LogFilter(service="service1")).SerializeToString()
    without, beside, threads = [], [], []
    with _tailing(on, 50):
        on.load(_QUERY, [request], in_flight=1)
    for _ in range(_ROUNDS):
        settle()
        without.append(on.load(_QUERY, [request], in_flight=1).p50_ms)
        before = _threads(on)
        with _tailing(on, _TAILS):
            settle()
            threads.append(_threads(on) - before)
            beside.append(on.load(_QUERY, [request], in_flight=1).p50_ms)
    yield Row(f"logs: threads added by {_TAILS:,} idle tails", max(threads), "", bar="0", met=max(threads) <= 0)
    name = f"logs: QueryLogs beside {_TAILS:,} idle tails, beside none, p50"
    yield at_most(name, statistics.median(beside), "ms", statistics.median(without), 1.2)


def _send(on: Stand, kind: Literal["ingest", "export"], batch: bytes, **changes: Any) -> Sent:
    token = on.metadata[0][1].removeprefix("Bearer ")
    job = {"seconds": _SECONDS, "most": 0, **changes}
    spelled = Job(on.settings.grpc_listen, kind, base64.b64encode(batch).decode(), _LANES, token=token, **job)
    command = [sys.executable, "-m", "benchmarks.batches"]
    done = subprocess.run(command, input=json.dumps(asdict(spelled)), stdout=subprocess.PIPE, text=True, check=True)
    return Sent(**json.loads(done.stdout))


def _copy_rate(connection: psycopg.Connection[Any], rows: tuple[str, str]) -> float:
    """Return the rows a second of one connection that copies the same batch under other names."""
    name, text = rows
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < _SECONDS:
        data = text.replace(name, str(uuid.uuid4())).encode()
        with connection.cursor().copy(_COPY) as copy:
            copy.write(data)
        count += _BATCH
    return count / (time.perf_counter() - begin)


def _export(count: int) -> otlp.ExportLogsServiceRequest:
    """Return an export of records with six attributes each, as a web service writes them."""
    chance, now = random.Random(1), time.time_ns()
    request = otlp.ExportLogsServiceRequest()
    resource_logs = request.resource_logs.add()
    resource_logs.resource.attributes.add(key="service.name").value.string_value = "bench"
    scope_logs = resource_logs.scope_logs.add()
    for number in range(count):
        record = scope_logs.log_records.add(
            time_unix_nano=now + number * 1000,
            observed_time_unix_nano=now + number * 1000,
            severity_number=chance.choice([5, 9, 9, 9, 9, 13, 17]),
            severity_text="INFO",
            trace_id=chance.randbytes(16),
            span_id=chance.randbytes(8),
            flags=1,
        )
        record.body.string_value = f"PacketResponder {number} for block blk_{chance.getrandbits(60)} terminating"
        for key, value in (
            ("http.request.method", "GET"),
            ("url.path", f"/api/v1/users/{chance.randrange(100_000)}"),
            ("client.address", f"10.0.{chance.randrange(256)}.{chance.randrange(256)}"),
            ("user_agent.original", "Mozilla/5.0 (X11; Linux x86_64)"),
        ):
            record.attributes.add(key=key).value.string_value = value
        record.attributes.add(key="http.response.status_code").value.int_value = 200
        record.attributes.add(key="duration_ms").value.double_value = chance.randrange(10_000) / 100
    return request


def _ingest(export: otlp.ExportLogsServiceRequest) -> bytes:
    """Return the same records as a batch of our contract."""
    request = pb.IngestLogsRequest(origin=pb.Origin(service="bench"))
    for record in export.resource_logs[0].scope_logs[0].log_records:
        made = request.records.add(
            severity=record.severity_number,
            severity_text=record.severity_text,
            trace_id=record.trace_id.hex(),
            span_id=record.span_id.hex(),
            trace_flags=record.flags,
        )
        made.time.seconds, made.time.nanos = divmod(record.time_unix_nano, 10**9)
        made.observed_time.CopyFrom(made.time)
        made.body.string_value = record.body.string_value
        for attribute in record.attributes:
            # Both are the same on the wire.
            made.attributes.add().MergeFromString(attribute.SerializeToString())
    return request.SerializeToString()


def _rows_of(export: otlp.ExportLogsServiceRequest) -> tuple[str, str]:
    """Return the name of a batch and the rows that the server makes of an export."""
    intake = Intake(Keys([], [], ""), None, b"")  # type: ignore[arg-type]  # nothing is sealed here
    taking = intake.begin(Retention([]))
    origin = Origin(str(uuid.uuid4()), "bench", "{}", "", "", "{}")
    taking.add(origin, export.resource_logs[0].scope_logs[0].log_records, read_otlp)
    batch = taking.done()
    return batch.id, "".join(batch.rows)


def _fill(on: Stand) -> None:
    """Store records of a day by COPY, and count them."""
    now = time.time_ns()
    _, text = _rows_of(_export(_BATCH))
    rows = [row.split("\t") for row in text.splitlines()]
    with psycopg.connect(_dsn(on), autocommit=True) as connection:
        connection.execute("SELECT logs.make_partitions(30::smallint, %s, %s, %s)", [DAY, now - 2 * DAY, now + DAY])
        for first in range(0, _STORED, _BATCH):
            with connection.cursor().copy(_COPY) as copy:
                copy.write(_portion(rows, first, now).encode())
            if first % 50_000 == 0:
                print(f"\rcopying records: {first:,} of {_STORED:,}", end="", file=sys.stderr)
        print(file=sys.stderr)
        connection.execute(
            "INSERT INTO logs.minute_count SELECT time / %s, service, severity, keep_days, count(*) FROM logs.record"
            " GROUP BY 1, 2, 3, 4",
            [MINUTE],
        )
        connection.execute("VACUUM (ANALYZE) logs.record")
        connection.execute("VACUUM (ANALYZE) logs.minute_count")
        connection.execute("CHECKPOINT")


def _portion(rows: list[list[str]], first: int, now: int) -> str:
    """Return rows like `rows`, of a service and times of their own, in traces of eight."""
    batch, service = str(uuid.uuid4()), f"service{first // _BATCH % _SERVICES}"
    lines = []
    for number, row in enumerate(rows, first):
        at = now - DAY + number * (DAY // _STORED)
        line = [batch, *row[1:4], str(at), row[5], str(at), service, row[8], _trace(number), *row[10:]]
        lines.append("\t".join(line))
    return "\n".join(lines) + "\n"


def _trace(number: int) -> str:
    return f"{number // 8 * 0x9E3779B97F4A7C15 % (1 << 128):032x}"


@contextmanager
def _tailing(on: Stand, count: int) -> Iterator[None]:
    """Hold so many tails, each past its first message."""
    channels = [
        grpc.insecure_channel(on.settings.grpc_listen, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(4)
    ]
    stubs = [LogsServiceStub(channel) for channel in channels]
    streams = [
        stubs[number % 4].TailLogs(
            pb.TailLogsRequest(filter=pb.LogFilter(service=f"quiet{number % 10}")), metadata=on.metadata
        )
        for number in range(count)
    ]
    try:
        for stream in streams:
            next(stream)
        yield
    finally:
        for channel in channels:
            channel.close()


def _threads(on: Stand) -> int:
    return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in on.pids)


def _dsn(on: Stand) -> str:
    dsn = on.settings.domain_direct_dsn("logs")
    assert dsn is not None
    return dsn
