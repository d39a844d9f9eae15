"""Administration: how all parts are, a statement that only reads, what is refused, and the log of all that."""

from __future__ import annotations

import os

import grpc
from kronos_db_client import Refusal, connect
from kronos_db_client.admin.v1 import audit_pb2, query_pb2, status_pb2
from kronos_db_client.admin.v1.admin_pb2_grpc import AdminServiceStub


def main() -> None:
    """Look around as an operator."""
    with connect(os.environ["KRONOS_ADDRESS"], token=os.environ["KRONOS_TOKEN"]) as channel:
        admin = AdminServiceStub(channel)

        status = admin.GetStatus(status_pb2.GetStatusRequest())
        print("status  ", len(status.domains), "domains", len(status.postgres), "PostgreSQL")

        for part in admin.Query(query_pb2.QueryRequest(sql="SELECT 40 + 2 AS answer, 'text' AS word"), timeout=20):
            if part.HasField("columns"):
                print("columns ", [column.name for column in part.columns.columns])
            for row in part.rows.rows:
                print("row     ", [getattr(value, value.WhichOneof("kind") or "") for value in row.values])
            if part.HasField("end"):
                # Without an end part the stream was broken off: its rows are not all rows.
                print("end     ", part.end.row_count)

        for refused in ("DELETE FROM users.users", "SELECT password_hash FROM users.credentials"):
            try:
                list(admin.Query(query_pb2.QueryRequest(sql=refused), timeout=20))
            except grpc.RpcError as error:
                refusal = Refusal.of(error)
                print("refused ", refusal.code.name, refusal.reason)

        method = "kronos.admin.v1.AdminService/Query"
        events = admin.ListAuditEvents(audit_pb2.ListAuditEventsRequest(method=method, page_size=2)).events
        print("recorded", [audit_pb2.AuditPhase.Name(event.phase) for event in events])


if __name__ == "__main__":
    main()
