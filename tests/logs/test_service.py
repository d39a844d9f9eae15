"""LogsService through real gRPC: what is written is found, by every filter, in both orders, page by page."""

from __future__ import annotations

import time
from typing import Any

import pytest
from kronos.logs.v1 import logs_pb2 as pb

from tests.logs.records import (
    SECOND,
    attributes_of,
    bodies,
    everything,
    fill,
    logs,
    record,
    service_name,
    set_time,
    value_of,
    write_request,
)
from tests.parts.refusal import refused
from tests.parts.serving import Serving


def filter_of(service: str, **fields: Any) -> pb.LogFilter:
    return pb.LogFilter(service=service, **fields)


def equals(key: str, value: Any) -> pb.AttributeCondition:
    condition = pb.AttributeCondition(key=key)
    fill(condition.equals, value)
    return condition


def exists(key: str, there: bool = True) -> pb.AttributeCondition:
    return pb.AttributeCondition(key=key, exists=there)


def test_a_record_comes_back_as_it_was_written(serving: Serving) -> None:
    stub, service = logs(serving), service_name()
    attributes = {"text": 'a "quoted" \\ tab\t line\n', "int": -7, "double": 2.0, "yes": True, "none": "", "zero": 0}
    attributes |= {"list": [1, 2.5, "x", b"\0\1"], "map": {"$bytes": "x", "deep": {"a": [{}]}}}
    written = record(
        "line one\nline two\twith \\ and ü",
        at=time.time_ns() // 1000 * 1000 + 123,
        attributes=attributes,
        severity=17,
        severity_text="ERROR",
        trace_id="AB" * 16,
        span_id="cd" * 8,
        trace_flags=1,
        event_name="an.event",
        dropped_attributes=3,
    )
    set_time(written.observed_time, time.time_ns())
    request = write_request(service, [written])
    request.origin.scope_name, request.origin.scope_version = "scope", "1"
    request.origin.attributes.add(key="host.name").value.string_value = "host"
    request.origin.scope_attributes.add(key="x").value.int_value = 1

    answer = stub.WriteLogs(request, timeout=10)
    page = stub.QueryLogs(pb.QueryLogsRequest(filter=filter_of(service)), timeout=10)

    assert (answer.stored, list(answer.refusals)) == (1, [])
    (found,) = page.records
    (origin,) = page.origins
    assert found.id == f"{answer.batch_id}-0"
    assert (found.time, found.observed_time, found.filed_time) == (written.time, written.observed_time, written.time)
    assert attributes_of(found) == attributes
    assert isinstance(attributes_of(found)["double"], float)
    assert (found.trace_id, found.span_id, found.service) == ("ab" * 16, "cd" * 8, service)
    for field in ("severity", "severity_text", "body", "trace_flags", "event_name", "dropped_attributes"):
        assert getattr(found, field) == getattr(written, field), field
    assert found.origin_id == origin.id
    assert (origin.service, origin.scope_name, origin.scope_version) == (service, "scope", "1")
    assert (attributes_of(origin), origin.scope_attributes[0].key) == ({"host.name": "host"}, "x")


@pytest.mark.parametrize("body", [{"a": [1, "x\\u0000", None]}, [1, 2], 7, 1.0, True, "", b"\0"])
def test_bodies_may_be_anything(serving: Serving, body: Any) -> None:
    stub, service = logs(serving), service_name()
    written = record()
    if isinstance(body, dict):
        body = {"a": [1, "x\\u0000"]}
    fill(written.body, body)
    stub.WriteLogs(write_request(service, [written, pb.LogRecord()]), timeout=10)
    first, second = everything(stub, service)
    with_body, without = (first, second) if first.body.WhichOneof("value") else (second, first)
    assert (type(value_of(with_body.body)), value_of(with_body.body)) == (type(body), body)
    assert not without.HasField("body")
    assert not without.HasField("observed_time")


def test_filters(serving: Serving) -> None:
    stub, service = logs(serving), service_name()
    now = time.time_ns()
    records = [
        record("alpha%_ one", at=now - 5 * SECOND, severity=5, attributes={"n": 1, "user": "ann", "tags": ["a", "b"]}),
        record("beta", at=now - 4 * SECOND, severity=9, attributes={"n": 2, "user": "bob"}, trace_id="0a" * 16),
        record("gamma", at=now - 3 * SECOND, severity=17, attributes={"n": 2}, span_id="0b" * 8, event_name="e"),
        record("ALPHA", at=now - 2 * SECOND, severity=21, attributes={"m": {"x": 1, "y": 2}}),
    ]
    stub.WriteLogs(write_request(service, records), timeout=10)
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["alpha%_ one", "beta", "gamma", "ALPHA"]),
        ({"minimum_severity": 9}, ["beta", "gamma", "ALPHA"]),
        ({"minimum_severity": 17}, ["gamma", "ALPHA"]),
        ({"minimum_severity": 6, "maximum_severity": 17}, ["beta", "gamma"]),
        ({"trace_id": "0A" * 16}, ["beta"]),
        ({"span_id": "0b" * 8}, ["gamma"]),
        ({"event_name": "e"}, ["gamma"]),
        ({"body_contains": "alpha%_"}, ["alpha%_ one"]),
        ({"body_contains": "a"}, ["alpha%_ one", "beta", "gamma"]),
        ({"attributes": [equals("n", 2)]}, ["beta", "gamma"]),
        ({"attributes": [equals("n", 2), equals("user", "bob")]}, ["beta"]),
        ({"attributes": [equals("n", "2")]}, []),
        ({"attributes": [equals("m", {"x": 1})]}, ["ALPHA"]),
        ({"attributes": [equals("tags", ["b"])]}, ["alpha%_ one"]),
        ({"attributes": [exists("user")]}, ["alpha%_ one", "beta"]),
        ({"attributes": [exists("user", there=False), exists("n")]}, ["gamma"]),
        ({"attributes": [equals("n", 2), exists("user", there=False)], "minimum_severity": 17}, ["gamma"]),
    ]
    for fields, expected in cases:
        assert bodies(everything(stub, service, **fields)) == expected, fields
    request = pb.QueryLogsRequest(filter=filter_of(service))
    set_time(request.time_from, now - 4 * SECOND)
    set_time(request.time_until, now - 2 * SECOND)
    assert bodies(stub.QueryLogs(request, timeout=10).records) == ["gamma", "beta"]


def test_pages_hold_everything_once_in_both_orders_also_where_times_are_equal(serving: Serving) -> None:
    stub, service = logs(serving), service_name()
    now = time.time_ns()
    for number in range(4):
        records = [record(f"{number}-{part}", at=now + part // 10) for part in range(60)]
        stub.WriteLogs(write_request(service, records), timeout=10)
    for order in (pb.LOG_ORDER_TIME_ASC, pb.LOG_ORDER_TIME_DESC):
        for fields in ({}, {"minimum_severity": 1}, {"attributes": [exists("x", there=False)]}):
            request = pb.QueryLogsRequest(filter=filter_of(service, **fields), page_size=37, order=order)
            found: list[pb.LogRecord] = []
            while True:
                page = stub.QueryLogs(request, timeout=10)
                assert len(page.records) <= 37
                found += page.records
                if not page.next_page_token:
                    break
                request.page_token = page.next_page_token
            assert len({each.id for each in found}) == 240
            times = [(each.filed_time.seconds, each.filed_time.nanos) for each in found]
            assert times == sorted(times, reverse=order == pb.LOG_ORDER_TIME_DESC)


def test_a_page_token_belongs_to_its_filters(serving: Serving) -> None:
    stub, service = logs(serving), service_name()
    stub.WriteLogs(write_request(service, [record() for _ in range(5)]), timeout=10)
    request = pb.QueryLogsRequest(filter=filter_of(service), page_size=2)
    request.page_token = stub.QueryLogs(request, timeout=10).next_page_token
    request.filter.minimum_severity = 1
    assert refused(lambda: stub.QueryLogs(request, timeout=10)).reason == "PAGE_TOKEN_INVALID"


def test_large_records_make_small_pages(serving: Serving) -> None:
    stub, service = logs(serving), service_name()
    for _ in range(3):
        stub.WriteLogs(write_request(service, [record("x" * 200_000) for _ in range(10)]), timeout=10)
    first = stub.QueryLogs(pb.QueryLogsRequest(filter=filter_of(service), page_size=1000), timeout=10)
    assert 1 <= len(first.records) <= 12
    assert first.ByteSize() < 4 * 1024 * 1024
    assert len(everything(stub, service)) == 30


def test_times_outside_of_the_partitions_have_a_place(serving: Serving) -> None:
    stub, service = logs(serving), service_name()
    now = time.time_ns()
    day = 86_400 * SECOND
    observed = pb.LogRecord()
    observed.body.string_value = "observed"
    set_time(observed.observed_time, now - day)
    nothing = pb.LogRecord()
    nothing.body.string_value = "nothing"
    records = [
        record("wildly early", at=1),
        record("too old", at=now - 31 * day),
        record("late", at=now - 20 * day),
        record("early", at=now + day // 2),
        record("too early", at=now + 2 * day),
        record("in 2262", at=(1 << 63) - 1),
        observed,
        nothing,
    ]
    answer = stub.WriteLogs(write_request(service, records), timeout=30)

    found = {each.body.string_value: each for each in everything(stub, service)}

    assert answer.stored == len(found) == 8
    for name in ("late", "early"):
        assert found[name].time == found[name].filed_time == records[bodies(records).index(name)].time
    for name in ("wildly early", "too old", "too early", "in 2262"):
        assert found[name].time == records[bodies(records).index(name)].time, "its own time is kept"
        assert abs(found[name].filed_time.seconds - now // SECOND) < 60
    assert found["observed"].filed_time == observed.observed_time
    assert abs(found["nothing"].filed_time.seconds - now // SECOND) < 60


def test_validate_only_writes_nothing(serving: Serving) -> None:
    stub, service = logs(serving), service_name()
    request = write_request(service, [record(), record("a\0b")], validate_only=True)
    answer = stub.WriteLogs(request, timeout=10)
    assert (answer.stored, [each.reason for each in answer.refusals]) == (1, ["TEXT_HAS_NUL"])
    assert everything(stub, service) == []
    # Nor does it make believe that the origin is stored.
    request.validate_only = False
    stub.WriteLogs(request, timeout=10)
    assert len(stub.QueryLogs(pb.QueryLogsRequest(filter=filter_of(service)), timeout=10).origins) == 1


def test_streams_are_acknowledged_batch_by_batch_in_order(serving: Serving) -> None:
    stub, service = logs(serving), service_name()
    requests = [
        pb.IngestLogsRequest(
            origin=pb.Origin(service=service), records=[record(f"{number}-{part}") for part in range(50)]
        )
        for number in range(20)
    ]
    requests[3].records.add(severity=99)

    answers = list(stub.IngestLogs(iter(requests), timeout=30))

    assert [answer.stored for answer in answers] == [50] * 20
    assert [[each.index for each in answer.refusals] for answer in answers] == [
        [50] if n == 3 else [] for n in range(20)
    ]
    found = {each.id: each.body.string_value for each in everything(stub, service)}
    assert len(found) == 1000
    for number, answer in enumerate(answers):
        assert [found[f"{answer.batch_id}-{part}"] for part in range(50)] == [f"{number}-{part}" for part in range(50)]


def test_a_bad_batch_ends_its_stream_behind_the_acknowledged_ones(serving: Serving) -> None:
    stub, service = logs(serving), service_name()
    good = pb.IngestLogsRequest(origin=pb.Origin(service=service), records=[record()])
    stream = stub.IngestLogs(iter([good, good, pb.IngestLogsRequest(records=[record()])]), timeout=30)
    assert [next(stream).stored, next(stream).stored] == [1, 1]
    found = refused(lambda: next(stream))
    assert (found.code, list(found.fields)) == ("INVALID_ARGUMENT", ["origin"])
    assert len(everything(stub, service)) == 2


def test_stats_count_what_is_there(fresh_serving: Serving) -> None:
    stub = logs(fresh_serving)
    empty = stub.GetLogStats(pb.GetLogStatsRequest(), timeout=10)
    assert (empty.records, empty.services, empty.HasField("oldest_time")) == (0, 0, False)
    now = time.time_ns() // (60 * SECOND) * 60 * SECOND
    for service, count in (("one", 30), ("two", 12)):
        stub.WriteLogs(write_request(service, [record(at=now - n * 60 * SECOND) for n in range(count)]), timeout=10)
    stats = stub.GetLogStats(pb.GetLogStatsRequest(), timeout=10)
    assert (stats.records, stats.services) == (42, 2)
    assert (stats.oldest_time.seconds, stats.newest_time.seconds) == (now // SECOND - 29 * 60, now // SECOND)
    assert [(each.keep_days, each.records) for each in stats.classes] == [(30, 42)]
    assert stats.classes[0].bytes > 0
