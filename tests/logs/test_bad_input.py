"""Records that break a rule are refused one by one, in both contracts, and the others are stored."""

from __future__ import annotations

import time
from typing import Any

import pytest
from kronos.logs.v1 import logs_pb2 as pb

from tests.logs.records import (
    bodies,
    everything,
    export,
    exporter,
    fill,
    logs,
    record,
    service_name,
    set_time,
    write_request,
)
from tests.parts.refusal import refused
from tests.parts.serving import Serving

YEAR_9999 = 253_402_300_799 * 1_000_000_000


def _nested(depth: int) -> Any:
    item: Any = "x"
    for _ in range(depth):
        item = {"a": item}
    return item


def _bad_records() -> list[tuple[str, str, pb.LogRecord]]:
    many = record()
    for number in range(10_000):
        many.attributes.add(key=f"k{number}").value.int_value = number
    deep_body = record()
    fill(deep_body.body, _nested(20))
    nanos = record()
    nanos.time.nanos = -1
    structured = record()
    fill(structured.body, {"a": "x\0y"})
    observed = record()
    set_time(observed.observed_time, YEAR_9999)
    return [
        ("TEXT_HAS_NUL", "", record("a\0b")),
        ("TEXT_HAS_NUL", "", record(severity_text="a\0")),
        ("TEXT_HAS_NUL", "", record(event_name="a\0")),
        ("TEXT_HAS_NUL", ".attributes", record(attributes={"a": "\\x\0"})),
        ("TEXT_HAS_NUL", ".attributes[0].key", record(attributes={"a": {"b\0": 1}})),
        ("TEXT_HAS_NUL", ".attributes[0].key", record(attributes={"a\0": 1})),
        ("TEXT_HAS_NUL", ".body", structured),
        ("TRACE_ID_INVALID", ".trace_id", record(trace_id="ab")),
        ("TRACE_ID_INVALID", ".trace_id", record(trace_id="zz" * 16)),
        ("SPAN_ID_INVALID", ".span_id", record(span_id="ab" * 9)),
        ("SEVERITY_OUT_OF_RANGE", ".severity", record(severity=25)),
        ("SEVERITY_OUT_OF_RANGE", ".severity", record(severity=-1)),
        ("RECORD_TOO_LARGE", "", record("x" * 300_000)),
        ("TOO_MANY_ATTRIBUTES", ".attributes", many),
        ("ATTRIBUTE_KEY_INVALID", ".attributes[1].key", record(attributes={"a": 1, "": 2})),
        ("ATTRIBUTE_KEY_INVALID", ".attributes[0].key", record(attributes={"x" * 257: 2})),
        ("NESTED_TOO_DEEP", ".attributes[0]", record(attributes={"a": _nested(20)})),
        ("NESTED_TOO_DEEP", ".body", deep_body),
        ("TIME_OUT_OF_RANGE", ".time", record(at=YEAR_9999)),
        ("TIME_OUT_OF_RANGE", ".time", record(at=-1_000_000_000)),
        ("TIME_OUT_OF_RANGE", ".observed_time", observed),
        ("TIME_OUT_OF_RANGE", ".time", nanos),
    ]


def test_each_is_refused_with_index_and_reason_and_the_others_are_stored(serving: Serving) -> None:
    stub, service = logs(serving), service_name()
    bad = _bad_records()
    records = [each for number, (_, _, wrong) in enumerate(bad) for each in (record(f"good {number}"), wrong)]

    answer = stub.WriteLogs(write_request(service, records), timeout=30)

    assert [(each.index, each.reason, each.field) for each in answer.refusals] == [
        (2 * number + 1, reason, f"records[{2 * number + 1}]{where}") for number, (reason, where, _) in enumerate(bad)
    ]
    assert all(each.description for each in answer.refusals)
    assert answer.stored == len(bad)
    assert sorted(bodies(everything(stub, service))) == sorted(f"good {number}" for number in range(len(bad)))


def test_what_only_looks_bad_is_stored(serving: Serving) -> None:
    stub, service = logs(serving), service_name()
    records = [
        record("\\u0000 \\x00 \\N \\."),
        record(attributes={"a": "\\u0000", "b": ["\\\\u0000"]}),
        record(trace_id="0" * 32, span_id="0" * 16),
        record("\x01\x1f\x7f\ufffe"),
    ]
    assert stub.WriteLogs(write_request(service, records), timeout=10).stored == 4
    found = everything(stub, service)
    assert [each.body for each in found] == [each.body for each in records]
    assert [each.attributes for each in found] == [each.attributes for each in records]
    assert [(each.trace_id, each.span_id) for each in found] == [("", "")] * 4


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("origin", lambda request: request.ClearField("origin")),
        ("origin.service", lambda request: request.origin.ClearField("service")),
        ("origin.service", lambda request: setattr(request.origin, "service", "x" * 257)),
        ("origin.service", lambda request: setattr(request.origin, "service", "x\0")),
        ("origin.attributes", lambda request: fill(request.origin.attributes.add(key="a").value, "\0")),
        ("origin.attributes[0]", lambda request: fill(request.origin.attributes.add(key="a").value, _nested(20))),
        ("origin.scope_attributes[0].key", lambda request: request.origin.scope_attributes.add(key="")),
        ("records", lambda request: request.ClearField("records")),
        ("records", lambda request: request.records.extend([pb.LogRecord()] * 10_001)),
        ("request_id", lambda request: setattr(request, "request_id", "x")),
    ],
)
def test_a_batch_that_is_bad_as_a_whole_is_refused_as_one(serving: Serving, path: str, change: Any) -> None:
    stub, service = logs(serving), service_name()
    request = write_request(service, [record()])
    change(request)
    found = refused(lambda: stub.WriteLogs(request, timeout=10))
    assert (found.code, list(found.fields)) == ("INVALID_ARGUMENT", [path])
    assert everything(stub, service) == []


def test_otlp_refuses_one_by_one_and_counts_them(serving: Serving) -> None:
    service = service_name()
    request = export(service, 20)
    records = request.resource_logs[0].scope_logs[0].log_records
    records[1].body.string_value = "\0"
    records[3].trace_id = b"short"
    records[5].span_id = b"x" * 9
    records[7].severity_number = 25
    records[9].body.string_value = "x" * (10 * 1024 * 1024)
    for number in range(10_000):
        records[11].attributes.add(key=f"k{number}").value.int_value = 1
    fill(records[13].body, _nested(20))
    records[15].time_unix_nano = (1 << 64) - 1
    records[17].attributes.add(key="").value.int_value = 1

    answer = exporter(serving).Export(request, timeout=30)

    assert answer.partial_success.rejected_log_records == 9
    told = answer.partial_success.error_message
    assert "record 1: TEXT_HAS_NUL" in told
    assert told.endswith("; and 4 more")
    assert len(everything(logs(serving), service)) == 11


def test_otlp_origins_that_are_bad_refuse_their_records_alone(serving: Serving) -> None:
    good, bad = service_name(), service_name()
    request = export(good, 3)
    other = export(bad, 4)
    fill(other.resource_logs[0].resource.attributes.add(key="x").value, "\0")
    request.resource_logs.extend(other.resource_logs)
    answer = exporter(serving).Export(request, timeout=10)
    assert answer.partial_success.rejected_log_records == 4
    stub = logs(serving)
    assert (len(everything(stub, good)), everything(stub, bad)) == (3, [])


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("time_from", lambda request: setattr(request.time_from, "seconds", 61)),
        ("time_until", lambda request: setattr(request.time_until, "seconds", 0)),
        ("time_until", lambda request: setattr(request.time_until, "seconds", YEAR_9999 // 10**9 // 60 * 60)),
        ("interval", lambda request: setattr(request.interval, "seconds", 90)),
        ("interval", lambda request: setattr(request.interval, "seconds", -60)),
        ("interval", lambda request: request.interval.CopyFrom(type(request.interval)(seconds=60))),
        ("attribute_key", lambda request: setattr(request, "grouping", pb.LOG_GROUPING_ATTRIBUTE)),
        ("group_limit", lambda request: setattr(request, "group_limit", -1)),
        ("filter.trace_id", lambda request: setattr(request.filter, "trace_id", "x")),
        ("filter.minimum_severity", lambda request: setattr(request.filter, "minimum_severity", 25)),
    ],
)
def test_questions_that_make_no_sense(serving: Serving, path: str, change: Any) -> None:
    request = pb.AggregateLogsRequest()
    request.time_from.seconds = 0
    request.time_until.seconds = 86_400 * 2
    request.interval.seconds = 3600
    change(request)
    found = refused(lambda: logs(serving).AggregateLogs(request, timeout=10))
    assert (found.code, list(found.fields)) == ("INVALID_ARGUMENT", [path])


def test_conditions_that_make_no_sense(serving: Serving) -> None:
    stub = logs(serving)
    none = pb.AttributeCondition(key="a")
    twice = [pb.AttributeCondition(key="a", equals=pb.Value(int_value=n)) for n in (1, 2)]
    redacted = pb.AttributeCondition(key="user.password", equals=pb.Value(string_value="x"))
    nul = pb.AttributeCondition(key="a", equals=pb.Value(string_value="\0"))
    large = pb.AttributeCondition(key="a", equals=pb.Value(string_value="x" * 5000))
    for conditions, path in (
        ([none], "filter.attributes[0].condition"),
        (twice, "filter.attributes[1].key"),
        ([redacted], "filter.attributes[0].key"),
        ([nul], "filter.attributes[0].equals.string_value"),
        ([large], "filter.attributes[0].equals"),
    ):
        request = pb.QueryLogsRequest(filter=pb.LogFilter(attributes=conditions))
        found = refused(lambda: stub.QueryLogs(request, timeout=10))  # noqa: B023  # called here and now
        assert (found.code, list(found.fields)) == ("INVALID_ARGUMENT", [path])


def test_a_batch_that_is_too_large_is_refused_as_such(serving: Serving) -> None:
    request = write_request(service_name(), [record("x" * 200_000) for _ in range(30)])
    found = refused(lambda: logs(serving).WriteLogs(request, timeout=10))
    assert (found.code, found.reason, found.retry) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE", None)


def test_they_are_counted(serving: Serving) -> None:
    def counted() -> dict[str, float]:
        families = {family.name: family for family in serving.server.registry.collect()}
        return {s.labels["outcome"]: s.value for s in families["kronos_db_log_records"].samples}

    before = counted()
    logs(serving).WriteLogs(write_request(service_name(), [record(), record("\0"), record()]), timeout=10)
    after = counted()
    assert {outcome: after[outcome] - before[outcome] for outcome in after} == {"stored": 2, "refused": 1}


def test_time_is_not_taken_from_a_broken_clock(serving: Serving) -> None:
    stub, service = logs(serving), service_name()
    before = time.time_ns()
    stub.WriteLogs(write_request(service, [record(at=0)]), timeout=10)
    (found,) = everything(stub, service)
    assert found.filed_time.seconds >= before // 10**9
