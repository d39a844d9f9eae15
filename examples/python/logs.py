"""Logs: a batch of which a part is refused, records as they come, a trace page by page, and counts."""

from __future__ import annotations

import os
import time
import uuid

from kronos_db_client import connect, follow, pages
from kronos_db_client.logs.v1 import logs_pb2 as pb
from kronos_db_client.logs.v1.logs_pb2_grpc import LogsServiceStub

INFO, ERROR = 9, 17  # as OpenTelemetry numbers severities


def record(trace_id: str, severity: int, body: str) -> pb.LogRecord:
    """Return a record of now."""
    made = pb.LogRecord(severity=severity, body=pb.Value(string_value=body), trace_id=trace_id)
    made.time.FromNanoseconds(time.time_ns())
    made.attributes.add(key="order.id", value=pb.Value(int_value=7))
    return made


def main() -> None:
    """Write and read the records of a request."""
    service, trace_id = f"shop-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    with connect(os.environ["KRONOS_ADDRESS"], token=os.environ["KRONOS_TOKEN"]) as channel:
        logs = LogsServiceStub(channel)

        tail = follow(logs.TailLogs, pb.TailLogsRequest(filter=pb.LogFilter(service=service, minimum_severity=ERROR)))
        next(tail)
        records = [record(trace_id, INFO, f"step {number}") for number in range(5)]
        records += [record(trace_id, ERROR, "card was declined"), record("not a trace id", INFO, "lost")]
        written = logs.WriteLogs(pb.WriteLogsRequest(origin=pb.Origin(service=service), records=records))
        print("stored  ", written.stored)
        for refusal in written.refusals:
            print("refused ", refusal.index, refusal.reason, refusal.field)

        told = next(each for message in tail for each in message.records)
        print("told    ", told.body.string_value)
        tail.close()

        query = pb.QueryLogsRequest(filter=pb.LogFilter(trace_id=trace_id), order=pb.LOG_ORDER_TIME_ASC, page_size=4)
        print("read    ", [len(page.records) for page in pages(logs.QueryLogs, query)])

        counting = pb.AggregateLogsRequest(filter=pb.LogFilter(service=service), grouping=pb.LOG_GROUPING_SEVERITY)
        minute = int(time.time()) // 60
        counting.time_from.FromSeconds((minute - 60) * 60)
        counting.time_until.FromSeconds((minute + 2) * 60)
        counted = logs.AggregateLogs(counting)
        print("counted ", counted.total, sorted(group.count for group in counted.groups))


if __name__ == "__main__":
    main()
