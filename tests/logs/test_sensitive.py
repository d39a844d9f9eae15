"""Sensitive attributes: sealed or redacted on every road in, opened for who may query, erased with their subject."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from kronos.logs.v1 import logs_pb2 as pb

from kronos_db.logs import store as store_module
from tests.logs.records import attributes_of, everything, export, exporter, fill, logs, record, write_request
from tests.parts.refusal import refused
from tests.parts.serving import Serving

SEALED = {"user.email": "ann-{}@example.org", "card": {"number": "4000-{}", "cvv": 1}}
REDACTED = {"password": "hunter-{}", "http.request.header.Authorization": "Bearer {}", "nested": {"api_key": "key-{}"}}


@pytest.fixture
def guarded(database: str, tmp_path: Path) -> Iterator[Serving]:
    running = Serving(tmp_path, database, logs_sealed_keys="email, card", logs_subject_key="enduser.id")
    running.start()
    yield running
    running.stop()


def marked(item: Any, mark: str) -> Any:
    if isinstance(item, dict):
        return {key: marked(value, mark) for key, value in item.items()}
    return item.format(mark) if isinstance(item, str) else item


def dump(dsn: str) -> str:
    """Return all that is in the tables of the domain, as text."""
    with psycopg.connect(dsn) as connection:
        names = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'logs'::regnamespace AND relkind IN ('r', 'p')"
        ).fetchall()
        rows: list[str] = []
        for (name,) in names:
            rows += [str(row) for row in connection.execute(f"SELECT t::text FROM logs.{name} AS t")]  # type: ignore[call-overload]  # a name of ours
    return "\n".join(rows)


def test_on_every_road_in_they_are_sealed_or_redacted(guarded: Serving, database: str) -> None:
    stub, mark = logs(guarded), uuid4().hex
    attributes = marked({**SEALED, **REDACTED, "plain": "seen-{}"}, mark)
    request = write_request("ours", [record(attributes=attributes)], request_id=str(uuid4()))
    fill(request.origin.attributes.add(key="owner.email").value, f"owner-{mark}")
    fill(request.origin.scope_attributes.add(key="secret").value, f"scope-{mark}")
    stub.WriteLogs(request, timeout=10)
    batch = pb.IngestLogsRequest(origin=request.origin, records=request.records)
    assert [answer.stored for answer in stub.IngestLogs(iter([batch]), timeout=10)] == [1]
    exported = export("otlp", 1)
    for key, value in attributes.items():
        entry = exported.resource_logs[0].scope_logs[0].log_records[0].attributes.add()
        entry.key = key
        fill(entry.value, value)
    exporter(guarded).Export(exported, timeout=10)

    kept = dump(database)
    assert f"seen-{mark}" in kept, "the search finds what is not sealed"
    assert kept.replace(f"seen-{mark}", "").count(mark) == 0

    expected = {**marked(SEALED, mark), "password": "***", "http.request.header.Authorization": "***"}
    expected |= {"nested": {"api_key": "***"}, "plain": f"seen-{mark}"}
    found = everything(stub, "ours") + everything(stub, "otlp")
    assert len(found) == 3
    for each in found:
        assert {key: value for key, value in attributes_of(each).items() if key in expected} == expected
    page = stub.QueryLogs(pb.QueryLogsRequest(filter=pb.LogFilter(service="ours")), timeout=10)
    assert attributes_of(page.origins[0]) == {"owner.email": f"owner-{mark}"}
    assert page.origins[0].scope_attributes[0].value.string_value == "***"


def test_sealed_ones_are_found_by_their_value(guarded: Serving) -> None:
    stub = logs(guarded)
    attributes = [{"user.email": f"u{number}@x.example"} for number in range(3)]
    stub.WriteLogs(write_request("s", [record(f"{n}", attributes=a) for n, a in enumerate(attributes)]), timeout=10)
    condition = pb.AttributeCondition(key="user.email")
    condition.equals.string_value = "u1@x.example"
    assert [each.body.string_value for each in everything(stub, "s", attributes=[condition])] == ["1"]
    # Not in another attribute, though it has the same value.
    condition.key = "owner.email"
    assert everything(stub, "s", attributes=[condition]) == []
    request = pb.AggregateLogsRequest(grouping=pb.LOG_GROUPING_ATTRIBUTE, attribute_key="user.email")
    request.time_from.seconds, request.time_until.seconds = 0, 60
    request.time_from.SetInParent()
    assert list(refused(lambda: stub.AggregateLogs(request, timeout=10)).fields) == ["attribute_key"]


def test_nobody_can_make_up_a_sealed_value(guarded: Serving) -> None:
    stub = logs(guarded)
    forged = {"a": {"$sealed": "k1.AAAA", "$index": "x"}, "$sealed": "y", "b": {"$bytes": "!"}}
    stub.WriteLogs(write_request("forged", [record(attributes=forged)]), timeout=10)
    assert attributes_of(everything(stub, "forged")[0]) == forged


def test_a_tail_opens_them_too(guarded: Serving) -> None:
    stub = logs(guarded)
    tail = stub.TailLogs(pb.TailLogsRequest(), timeout=20)
    next(tail)
    stub.WriteLogs(write_request("t", [record(attributes={"email": "a@b.example", "token": "x"})]), timeout=10)
    assert attributes_of(next(tail).records[0]) == {"email": "a@b.example", "token": "***"}
    tail.cancel()


def test_erasure_is_complete_and_counts(guarded: Serving, monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    monkeypatch.setattr(store_module, "_ERASED_AT_A_TIME", 70)
    stub = logs(guarded)
    mine, others = {"enduser.id": "ann"}, {"enduser.id": "bob"}
    for service in ("one", "two"):
        records = [record(attributes=mine if n % 3 else others) for n in range(300)]
        stub.WriteLogs(write_request(service, records), timeout=10)
    exported = export("three", 50)
    for each in exported.resource_logs[0].scope_logs[0].log_records:
        fill(each.attributes.add(key="enduser.id").value, "ann")
    exporter(guarded).Export(exported, timeout=10)
    tail = stub.TailLogs(pb.TailLogsRequest(), timeout=20)
    token = next(tail).resume_token
    stub.WriteLogs(
        write_request("four", [record("gone", attributes=mine), record("there", attributes=others)]), timeout=10
    )
    next(tail)
    tail.cancel()

    dry = stub.EraseLogs(pb.EraseLogsRequest(subject="ann", validate_only=True), timeout=10)
    request = pb.EraseLogsRequest(subject="ann", request_id=str(uuid4()))
    answers = [stub.EraseLogs(request, timeout=30) for _ in range(2)]

    assert [dry.erased, *(answer.erased for answer in answers)] == [451, 451, 451]
    left = [each for service in ("one", "two", "three", "four") for each in everything(stub, service)]
    assert len(left) == 201
    assert {attributes_of(each)["enduser.id"] for each in left} == {"bob"}
    assert stub.GetLogStats(pb.GetLogStatsRequest(), timeout=10).records == 201
    assert stub.EraseLogs(pb.EraseLogsRequest(subject="ann"), timeout=10).erased == 0
    with psycopg.connect(database) as connection:
        assert connection.execute(
            "SELECT count(*) FROM logs.record WHERE attributes->>'enduser.id' = 'ann'"
        ).fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM logs.erasure").fetchone() == (0,)
    # Who goes on from before is told what is left.
    again = stub.TailLogs(pb.TailLogsRequest(resume_token=token), timeout=20)
    next(again)
    assert [each.body.string_value for each in next(again).records] == ["there"]
    again.cancel()


def test_an_erasure_that_was_broken_off_goes_on_and_counts_all(
    guarded: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_ERASED_AT_A_TIME", 10)
    monkeypatch.setattr(store_module, "_PORTION_SECONDS", 1000.0)
    stub = logs(guarded)
    stub.WriteLogs(write_request("s", [record(attributes={"enduser.id": "ann"}) for _ in range(25)]), timeout=10)
    request = pb.EraseLogsRequest(subject="ann", request_id=str(uuid4()))
    assert refused(lambda: stub.EraseLogs(request, timeout=20)).code == "DEADLINE_EXCEEDED"
    assert 0 < len(everything(stub, "s")) < 25
    monkeypatch.setattr(store_module, "_PORTION_SECONDS", 0.0)
    assert stub.EraseLogs(request, timeout=20).erased == 25
    assert everything(stub, "s") == []


@pytest.mark.parametrize("setting", ["logs_sealed_keys", "logs_redacted_keys"])
def test_a_subject_that_is_sensitive_itself_can_be_erased(database: str, tmp_path: Path, setting: str) -> None:
    serving = Serving(tmp_path, database, logs_subject_key="user.email", **{setting: "email"})
    serving.start()
    try:
        stub = logs(serving)
        stub.WriteLogs(write_request("s", [record(attributes={"user.email": "ann@x.example"})]), timeout=10)
        assert "ann@x.example" not in dump(database)
        assert stub.EraseLogs(pb.EraseLogsRequest(subject="ann@x.example"), timeout=10).erased == 1
        assert everything(stub, "s") == []
    finally:
        serving.stop()


def test_subjects_are_kept_as_keyed_hashes(guarded: Serving, database: str) -> None:
    logs(guarded).WriteLogs(write_request("s", [record(attributes={"enduser.id": 17})]), timeout=10)
    with psycopg.connect(database) as connection:
        found = connection.execute("SELECT subject FROM logs.record").fetchone()
    assert found is not None
    assert len(found[0]) == 43
    assert logs(guarded).EraseLogs(pb.EraseLogsRequest(subject="17"), timeout=10).erased == 1
