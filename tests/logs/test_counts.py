"""AggregateLogs: the counts that are kept say what the records say, at every moment and whatever was merged."""

from __future__ import annotations

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kronos.logs.v1 import logs_pb2 as pb

from kronos_db.logs.store import LogsStore
from kronos_db.schemas import open_database
from tests.logs.records import SECOND, everything, logs, record, service_name, write_request
from tests.parts.serving import Serving

MINUTE = 60 * SECOND


def asked(service: str = "", *, start: int, minutes: int, interval: int = 0, **fields: Any) -> pb.AggregateLogsRequest:
    request = pb.AggregateLogsRequest(filter=pb.LogFilter(service=service, **fields.pop("filter", {})), **fields)
    request.time_from.seconds = start * 60
    request.time_until.seconds = (start + minutes) * 60
    if interval:
        request.interval.seconds = interval * 60
    return request


def counts_of(answer: pb.AggregateLogsResponse) -> dict[tuple[int, str], int]:
    return {(each.time.seconds // 60, each.group): each.count for each in answer.counts}


def test_counts_by_severity_service_and_attribute(serving: Serving) -> None:
    stub, service = logs(serving), service_name()
    chance = random.Random(1)
    start = time.time_ns() // MINUTE - 300
    written: list[tuple[int, int, str]] = []
    for _ in range(3):
        records = []
        for _ in range(200):
            minute, severity, color = start + chance.randrange(120), chance.choice([5, 9, 17]), chance.choice("rgb")
            written.append((minute, severity, color))
            at = minute * MINUTE + chance.randrange(MINUTE)
            records.append(record(at=at, severity=severity, attributes={"color": color, "n": 1}))
        stub.WriteLogs(write_request(service, records), timeout=10)

    total = stub.AggregateLogs(asked(service, start=start, minutes=120), timeout=10)
    assert [(each.group, each.count) for each in total.counts] == [("", 600)]
    assert (total.total, total.more_groups) == (600, 0)

    by_minute = stub.AggregateLogs(asked(service, start=start, minutes=120, interval=1), timeout=10)
    assert counts_of(by_minute) == {(minute, ""): n for minute, n in Counter(m for m, _, _ in written).items()}

    by_severity = asked(service, start=start, minutes=120, interval=10, grouping=pb.LOG_GROUPING_SEVERITY)
    expected = Counter((start + (minute - start) // 10 * 10, str(severity)) for minute, severity, _ in written)
    assert counts_of(stub.AggregateLogs(by_severity, timeout=10)) == dict(expected)
    # The same from the records, since the counts know nothing of attributes.
    by_severity.filter.attributes.add(key="n", exists=True)
    assert counts_of(stub.AggregateLogs(by_severity, timeout=10)) == dict(expected)

    by_color = asked(
        service, start=start, minutes=120, interval=60, grouping=pb.LOG_GROUPING_ATTRIBUTE, attribute_key="color"
    )
    expected = Counter((start + (minute - start) // 60 * 60, color) for minute, _, color in written)
    answer = stub.AggregateLogs(by_color, timeout=10)
    assert counts_of(answer) == dict(expected)
    ranked = Counter(color for _, _, color in written)
    assert [(g.group, g.count) for g in answer.groups] == sorted(ranked.items(), key=lambda g: (-g[1], g[0]))
    by_color.group_limit = 1
    answer = stub.AggregateLogs(by_color, timeout=10)
    assert (len(answer.groups), answer.more_groups, answer.total) == (1, 2, 600)
    assert {group for _, group in counts_of(answer)} == {answer.groups[0].group}

    part = asked(service, start=start + 30, minutes=60, filter={"minimum_severity": 9, "maximum_severity": 16})
    assert stub.AggregateLogs(part, timeout=10).total == sum(
        start + 30 <= minute < start + 90 and severity == 9 for minute, severity, _ in written
    )


def test_by_service(fresh_serving: Serving) -> None:
    stub = logs(fresh_serving)
    start = time.time_ns() // MINUTE - 5
    for service, count in (("one", 3), ("two", 5), ("three", 5)):
        stub.WriteLogs(write_request(service, [record(at=start * MINUTE) for _ in range(count)]), timeout=10)
    answer = stub.AggregateLogs(asked(start=start, minutes=10, grouping=pb.LOG_GROUPING_SERVICE), timeout=10)
    assert [(each.group, each.count) for each in answer.groups] == [("three", 5), ("two", 5), ("one", 3)]


def test_counts_are_exact_while_they_are_written_merged_and_erased(fresh_serving: Serving) -> None:
    stub, service = logs(fresh_serving), "counted"
    start = time.time_ns() // MINUTE - 60
    store = LogsStore(open_database(fresh_serving.settings, "logs"))
    written = 0

    def write(number: int) -> int:
        chance = random.Random(number)
        records = [
            record(at=(start + chance.randrange(50)) * MINUTE, attributes={"enduser.id": f"u{chance.randrange(3)}"})
            for _ in range(chance.randrange(1, 30))
        ]
        return int(stub.WriteLogs(write_request(service, records), timeout=30).stored)

    try:
        with ThreadPoolExecutor(8) as pool:
            for turn in range(6):
                running = [pool.submit(write, turn * 100 + number) for number in range(16)]
                for _ in range(5):
                    store.merge_counts()
                written += sum(each.result() for each in running)
                if turn % 2:
                    written -= stub.EraseLogs(pb.EraseLogsRequest(subject=f"u{turn % 3}"), timeout=30).erased
                total = stub.AggregateLogs(asked(service, start=start, minutes=60), timeout=10).total
                assert total == written == len(everything(stub, service))
        while store.merge_counts():
            pass
        assert stub.AggregateLogs(asked(service, start=start, minutes=60), timeout=10).total == written
        assert stub.GetLogStats(pb.GetLogStatsRequest(), timeout=10).records == written
    finally:
        store.database.pool.close()
