"""A call that runs something, through a whole server: what stands in PostgreSQL while it runs, and when it is over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from kronos.admin.v1 import audit_pb2 as pb
from kronos.admin.v1.admin_pb2_grpc import AdminServiceStub

from kronos_db.admin.audit_service import AuditHandlers
from kronos_db.runtime.errors import ConflictError
from kronos_db.runtime.interceptors.method import Method
from tests.parts.serving import Serving

_ROWS = "SELECT phase, caller, code, reason, request, request_id, call_id FROM admin.audit_events ORDER BY sequence"


class Recorded:
    """A server that takes VerifyAuditLog for a method that runs something; `seen` is the log while it runs."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self.seen: list[Any] = []
        self.failure: Exception | None = None
        self._dsn = dsn
        self.serving = Serving(folder, dsn)
        self.serving.start()

    def rows(self) -> list[Any]:
        with psycopg.connect(self._dsn) as connection:
            return connection.execute(_ROWS).fetchall()

    def run(self, _handlers: AuditHandlers, _request: Any, _context: object) -> pb.VerifyAuditLogResponse:
        self.seen += self.rows()
        if self.failure is not None:
            raise self.failure
        return pb.VerifyAuditLogResponse()

    def call(self) -> Any:
        stub = AdminServiceStub(self.serving.channel_of("operator"))
        return stub.VerifyAuditLog(pb.VerifyAuditLogRequest(from_sequence=7), metadata=(("x-request-id", "mine"),))


@pytest.fixture
def recorded(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    monkeypatch.setattr(Method, "audited", property(lambda method: method.name == "VerifyAuditLog"))
    # Registered when the server is built, which is before the object is there.
    made: list[Recorded] = []

    def verify(*arguments: Any) -> pb.VerifyAuditLogResponse:
        return made[0].run(*arguments)

    monkeypatch.setattr(AuditHandlers, "VerifyAuditLog", verify)
    made.append(Recorded(database, tmp_path))
    yield made[0]
    made[0].serving.stop()


def test_a_call_stands_in_the_log_while_it_runs_and_with_its_outcome_when_it_is_answered(recorded: Recorded) -> None:
    recorded.call()

    [begun] = recorded.seen
    assert begun[:6] == (1, "operator", "", "", "from_sequence: 7", "mine")
    assert [row[:6] for row in recorded.rows()] == [begun[:6], (2, "operator", "OK", "", "", "mine")]
    assert len({row[6] for row in recorded.rows()}) == 1


def test_the_outcome_of_a_call_that_failed_is_in_the_log_when_it_is_answered(recorded: Recorded) -> None:
    recorded.failure = ConflictError()
    with pytest.raises(grpc.RpcError):
        recorded.call()

    assert [row[:4] for row in recorded.rows()] == [(1, "operator", "", ""), (2, "operator", "ABORTED", "CONFLICT")]
