"""Retention: what is kept for how long, which partitions there are, and that dropping one scans nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest
from kronos.logs.v1 import logs_pb2 as pb

from kronos_db.logs.model import DAY, MINUTE, WIDTHS
from kronos_db.logs.store import LogsStore
from kronos_db.logs.upkeep import turn_partitions
from kronos_db.runtime.database.background import Held
from kronos_db.schemas import open_database
from tests.logs.records import everything, logs, record, service_name, write_request
from tests.parts.refusal import refused
from tests.parts.serving import Serving


@pytest.fixture
def store(fresh_serving: Serving) -> Iterator[LogsStore]:
    opened = LogsStore(open_database(fresh_serving.settings, "logs"))
    yield opened
    opened.database.pool.close()


def set_rule(serving: Serving, keep_days: int, service: str = "", severity: int = 0) -> None:
    rule = pb.RetentionRule(service=service, severity=severity, keep_days=keep_days)  # type: ignore[arg-type]  # a number
    logs(serving).SetRetention(pb.SetRetentionRequest(rule=rule), timeout=10)


def kept(serving: Serving, service: str) -> dict[str, int]:
    """Return of each body for how many days its record is kept."""
    with psycopg.connect(str(serving.settings.postgres_dsn.get_secret_value())) as connection:  # type: ignore[union-attr]
        query = "SELECT body, keep_days FROM logs.record WHERE service = %s"
        return {str(body): int(days) for body, days in connection.execute(query, [service])}


def partitions(dsn: str) -> list[tuple[int, int, int]]:
    with psycopg.connect(dsn) as connection:
        query = "SELECT keep_days, time_from, time_until FROM logs.partition ORDER BY 1, 2"
        return [(int(a), int(b), int(c)) for a, b, c in connection.execute(query)]


def test_rules_hold_from_the_next_record_on(fresh_serving: Serving) -> None:
    stub, service = logs(fresh_serving), service_name()

    def write(name: str) -> None:
        records = [record(f"{name} {severity}", severity=severity) for severity in (5, 9, 17)]
        stub.WriteLogs(write_request(service, records), timeout=10)

    write("before")
    set_rule(fresh_serving, 7)
    set_rule(fresh_serving, 1, severity=pb.SEVERITY_RANGE_DEBUG)
    set_rule(fresh_serving, 365, service, pb.SEVERITY_RANGE_ERROR)
    write("with")
    set_rule(fresh_serving, 0, severity=pb.SEVERITY_RANGE_DEBUG)
    write("after")

    assert kept(fresh_serving, service) == {
        **dict.fromkeys(("before 5", "before 9", "before 17"), 30),
        "with 5": 1,
        "with 9": 7,
        "with 17": 365,
        "after 5": 7,
        "after 9": 7,
        "after 17": 365,
    }
    assert len(everything(stub, service)) == 9


def test_rules_are_listed_by_page(fresh_serving: Serving) -> None:
    stub = logs(fresh_serving)
    for service in ("a", "b"):
        for severity in (0, 5):
            set_rule(fresh_serving, 7, service, severity)
    set_rule(fresh_serving, 14, "a", 5)
    found: list[tuple[str, int, int]] = []
    request = pb.ListRetentionRequest(page_size=3)
    while True:
        page = stub.ListRetention(request, timeout=10)
        found += [(rule.service, rule.severity, rule.keep_days) for rule in page.rules]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert found == [("a", 0, 7), ("a", 5, 14), ("b", 0, 7), ("b", 5, 7)]


def test_days_that_are_no_class_are_refused(serving: Serving) -> None:
    rule = pb.RetentionRule(service="x", keep_days=5)
    found = refused(lambda: logs(serving).SetRetention(pb.SetRetentionRequest(rule=rule), timeout=10))
    assert (found.code, list(found.fields)) == ("INVALID_ARGUMENT", ["rule.keep_days"])
    everything_allowed = {0, *WIDTHS}
    rules = pb.RetentionRule.DESCRIPTOR.fields_by_name["keep_days"].GetOptions()
    assert (
        set(next(value for field, value in rules.ListFields() if field.name == "field").int32.__getattribute__("in"))
        == everything_allowed
    )


def test_validate_only_sets_nothing(fresh_serving: Serving) -> None:
    stub = logs(fresh_serving)
    rule = pb.RetentionRule(keep_days=90)
    stub.SetRetention(pb.SetRetentionRequest(rule=rule, validate_only=True), timeout=10)
    assert list(stub.ListRetention(pb.ListRetentionRequest(), timeout=10).rules) == []


def test_partitions_are_made_ahead_and_dropped_when_they_are_over(
    fresh_serving: Serving, store: LogsStore, database: str
) -> None:
    stub, service = logs(fresh_serving), service_name()
    now = time.time_ns()
    set_rule(fresh_serving, 7, service)
    days = (0, 3, 6)
    stub.WriteLogs(write_request(service, [record(f"{age}", at=now - age * DAY) for age in days]), timeout=10)
    with psycopg.connect(database, autocommit=True) as connection:
        # As if ten days had passed for one partition.
        connection.execute("SELECT logs.make_partitions(7::smallint, %s, %s, %s)", [DAY, now - 10 * DAY, now - 9 * DAY])
        old = (now - 10 * DAY) // MINUTE
        connection.execute("INSERT INTO logs.minute_count VALUES (%s, %s, 9, 7, 5)", [old, service])
        connection.execute(
            "INSERT INTO logs.count_delta VALUES (%s, %s, 9, 7, 5), (%s, %s, 9, 30, 2)", [old, service] * 2
        )

    turn_partitions(store, Held(1, lambda: True))

    mine = [(start, end) for keep, start, end in partitions(database) if keep == 7]
    assert mine[0][0] <= now - 6 * DAY < mine[0][1] + DAY
    assert all(end > now - 7 * DAY for _, end in mine)
    assert mine[-1][1] >= now + 2 * DAY
    assert len(everything(stub, service)) == 3
    stats = stub.GetLogStats(pb.GetLogStatsRequest(), timeout=10)
    assert {each.keep_days: each.records for each in stats.classes}[7] == 3, "its counts went with it"
    assert stats.records == 5, "those of other classes stay"
    turn_partitions(store, Held(1, lambda: True))
    assert [(start, end) for keep, start, end in partitions(database) if keep == 7] == mine


def test_dropping_a_partition_waits_for_no_reader_for_long(
    fresh_serving: Serving, store: LogsStore, database: str
) -> None:
    now = time.time_ns()
    with psycopg.connect(database) as reader, psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SELECT logs.make_partitions(1::smallint, %s, %s, %s)", [DAY, now - 9 * DAY, now - 8 * DAY])
        reader.execute("SELECT count(*) FROM logs.record").fetchone()
        assert store.drop_partition(1) is None
        reader.rollback()
        while store.drop_partition(1) is not None:
            pass
    assert [keep for keep, _, _ in partitions(database) if keep == 1] == []


def test_a_write_makes_the_partition_that_nobody_made(fresh_serving: Serving, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        for (name,) in connection.execute("SELECT name FROM logs.partition").fetchall():
            connection.execute(f"DROP TABLE logs.{name}")  # type: ignore[call-overload]  # a name of ours
        connection.execute("DELETE FROM logs.partition")
    stub, service = logs(fresh_serving), service_name()
    for size in (1, 500):
        assert stub.WriteLogs(write_request(service, [record() for _ in range(size)]), timeout=10).stored == size
    assert len(everything(stub, service)) == 501


def test_the_login_role_may_not_change_structure(store: LogsStore) -> None:
    with store.database.pool.connection() as connection:
        for text in ("DROP TABLE logs.record", "CREATE TABLE logs.x ()", "SELECT logs.drop_partition('x; y', 1)"):
            with pytest.raises(psycopg.Error):
                connection.execute(text)  # type: ignore[call-overload]  # literals
