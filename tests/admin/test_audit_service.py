"""The audit log as operators see it: what is in it, by which filters, and whether it is whole."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from kronos.admin.v1 import audit_pb2 as pb
from kronos.admin.v1.admin_pb2_grpc import AdminServiceStub

from kronos_db.admin.audit import HashChain, Link
from kronos_db.admin.audit_store import AuditStore
from kronos_db.embedded.postgres import EmbeddedPostgres
from tests.admin.test_audit import an_event
from tests.parts.domain import new_database
from tests.parts.eventually import eventually
from tests.parts.refusal import refused
from tests.parts.serving import Serving

LIST = "kronos.admin.v1.AdminService/ListAuditEvents"


@pytest.fixture(scope="module")
def audited(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server whose log the tests of this file break."""
    with new_database(postgres) as dsn:
        folder: Path = tmp_path_factory.mktemp("audited")
        running = Serving(folder, dsn)
        running.start()
        yield running
        running.stop()


@pytest.fixture
def admin(audited: Serving) -> AdminServiceStub:
    return AdminServiceStub(audited.channel_of("operator"))


@pytest.fixture
def log(audited: Serving) -> Iterator[Callable[[str], None]]:
    """Runs SQL against the log as somebody who may do everything; the log is whole again afterwards."""
    database = audited.server._databases["admin"]
    store = AuditStore(database, HashChain(audited.server._domains.rings["admin"].subkey("audit log")))  # type: ignore[union-attr]
    dsn = audited.settings.domain_direct_dsn("admin")
    assert dsn is not None

    def run(*statements: str) -> None:
        with psycopg.connect(dsn) as connection:
            connection.execute("ALTER TABLE admin.audit_events DISABLE TRIGGER append_only")
            for statement in statements:
                connection.execute(statement.encode())
            connection.execute("ALTER TABLE admin.audit_events ENABLE ALWAYS TRIGGER append_only")

    run("TRUNCATE admin.audit_events")
    for number in range(5):
        store.add([an_event(caller=f"caller {number}")])
    yield run
    run("TRUNCATE admin.audit_events")


def of(admin: AdminServiceStub, **filters: Any) -> list[pb.AuditEvent]:
    return list(admin.ListAuditEvents(pb.ListAuditEventsRequest(**filters)).events)


@pytest.mark.parametrize(
    ("caller", "request_", "expected"),
    [
        (None, pb.ListAuditEventsRequest(), ("", "UNAUTHENTICATED", "CREDENTIAL_INVALID")),
        ("reader", pb.ListAuditEventsRequest(), ("reader", "PERMISSION_DENIED", "METHOD_NOT_ALLOWED")),
        ("operator", pb.ListAuditEventsRequest(page_size=-1), ("operator", "INVALID_ARGUMENT", "BAD_REQUEST")),
        ("operator", pb.ListAuditEventsRequest(page_token="x"), ("operator", "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")),
    ],
)
def test_every_refusal_is_in_the_log(
    audited: Serving, admin: AdminServiceStub, caller: str | None, request_: Any, expected: Any
) -> None:
    mine = uuid.uuid4().hex
    channel = audited.channel_of(caller) if caller else audited.channel
    stub = AdminServiceStub(channel)
    with pytest.raises(grpc.RpcError):
        stub.ListAuditEvents(request_, metadata=(("x-request-id", mine),))

    def found() -> list[pb.AuditEvent]:
        return [event for event in of(admin, method="ListAuditEvents") if event.request_id == mine]

    eventually(found)
    [event] = found()
    assert (event.caller, event.code, event.reason) == expected
    assert (event.phase, event.method, event.call_count) == (pb.AUDIT_PHASE_REFUSED, LIST, 1)
    assert abs(event.event_time.ToDatetime(UTC) - datetime.now(UTC)) < timedelta(seconds=20)


def test_what_only_reads_is_not_in_the_log(admin: AdminServiceStub, log: Callable[[str], None]) -> None:
    admin.VerifyAuditLog(pb.VerifyAuditLogRequest())
    assert [event.caller for event in of(admin)] == [f"caller {number}" for number in reversed(range(5))]


def test_pages_follow_each_other(admin: AdminServiceStub, log: Callable[[str], None]) -> None:
    seen, token = [], ""
    while True:
        page = admin.ListAuditEvents(pb.ListAuditEventsRequest(page_size=2, page_token=token))
        seen += [event.sequence for event in page.events]
        token = page.next_page_token
        if not token:
            break
    assert seen == [5, 4, 3, 2, 1]


def test_filters(admin: AdminServiceStub, log: Callable[[str], None]) -> None:
    events = of(admin)
    third = next(event for event in events if event.caller == "caller 2")
    assert [event.id for event in of(admin, caller="caller 2")] == [third.id]
    assert [event.id for event in of(admin, call_id=third.call_id)] == [third.id]
    assert len(of(admin, method="ListAuditEvents")) == len(of(admin, method=LIST)) == 5
    assert of(admin, method="VerifyAuditLog") == []
    assert len(of(admin, code="PERMISSION_DENIED")) == len(of(admin, phase=pb.AUDIT_PHASE_REFUSED)) == 5
    assert of(admin, code="OK") == of(admin, phase=pb.AUDIT_PHASE_BEGUN) == []
    later = of(admin, event_time_from=third.event_time)
    earlier = of(admin, event_time_until=third.event_time)
    assert {event.sequence for event in later} == {3, 4, 5}
    assert {event.sequence for event in earlier} == {1, 2}


def test_whole_log_is_told_with_its_end(admin: AdminServiceStub, log: Callable[[str], None]) -> None:
    answer = admin.VerifyAuditLog(pb.VerifyAuditLogRequest())
    assert not answer.HasField("first_break")
    assert (answer.events, answer.last_sequence, answer.next_sequence) == (5, 5, 0)
    assert answer.last_hash == of(admin)[0].hash


_COLUMNS = (
    "id, call_id, phase, event_time, caller, method, request, detail, code, reason, request_id, call_count,"
    " previous_hash, hash"
)
_INSERT = f"""
    INSERT INTO admin.audit_events (sequence, {_COLUMNS})
    SELECT 6, gen_random_uuid(), {_COLUMNS.removeprefix("id, ")} FROM admin.audit_events WHERE sequence = 5
"""


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (["UPDATE admin.audit_events SET caller = 'eve' WHERE sequence = 3"], (3, pb.AUDIT_FAULT_ALTERED)),
        (["UPDATE admin.audit_events SET call_count = 2 WHERE sequence = 5"], (5, pb.AUDIT_FAULT_ALTERED)),
        (
            ["UPDATE admin.audit_events SET event_time = event_time + interval '1 us' WHERE sequence = 1"],
            (1, pb.AUDIT_FAULT_ALTERED),
        ),
        # What separates two texts is not theirs to shift.
        (
            ["UPDATE admin.audit_events SET reason = 'D' || reason, code = 'PERMISSION_DENIE' WHERE sequence = 2"],
            (2, pb.AUDIT_FAULT_ALTERED),
        ),
        (["DELETE FROM admin.audit_events WHERE sequence = 2"], (2, pb.AUDIT_FAULT_MISSING)),
        (["DELETE FROM admin.audit_events WHERE sequence = 1"], (1, pb.AUDIT_FAULT_MISSING)),
        (
            [
                "DELETE FROM admin.audit_events WHERE sequence = 2",
                "UPDATE admin.audit_events SET sequence = sequence - 1 WHERE sequence > 2",
            ],
            (2, pb.AUDIT_FAULT_ALTERED),
        ),
        (
            [
                _INSERT,
            ],
            (6, pb.AUDIT_FAULT_ALTERED),
        ),
    ],
)
def test_first_broken_link_is_named(
    admin: AdminServiceStub, log: Callable[..., None], statements: list[str], expected: tuple[int, int]
) -> None:
    log(*statements)
    answer = admin.VerifyAuditLog(pb.VerifyAuditLogRequest())
    assert (answer.first_break.sequence, answer.first_break.fault) == expected
    assert answer.next_sequence == 0


def test_event_of_another_log_with_the_same_key_is_unchained(audited: Serving, admin: Any, log: Any) -> None:
    chain = HashChain(audited.server._domains.rings["admin"].subkey("audit log"))  # type: ignore[union-attr]
    database = audited.server._databases["admin"]
    last = of(admin)[0]
    log("DELETE FROM admin.audit_events WHERE sequence = 5")
    # It is whole by itself, and at the right place.
    forged = chain.chained([an_event(caller="eve")], Link(4, bytes(range(32))))[0]
    assert forged.sequence == last.sequence
    store = AuditStore(database, chain)
    database.transact(lambda tx: tx.execute(store._queries["add"], forged._asdict()))
    answer = admin.VerifyAuditLog(pb.VerifyAuditLogRequest())
    assert (answer.first_break.sequence, answer.first_break.fault) == (5, pb.AUDIT_FAULT_UNCHAINED)


def test_newest_events_cannot_be_cut_off_before_an_anchor(admin: AdminServiceStub, log: Callable[[str], None]) -> None:
    end = admin.VerifyAuditLog(pb.VerifyAuditLogRequest())
    anchor: dict[str, Any] = {"anchor_sequence": end.last_sequence, "anchor_hash": end.last_hash}
    assert not admin.VerifyAuditLog(pb.VerifyAuditLogRequest(**anchor)).HasField("first_break")
    other: dict[str, Any] = {**anchor, "anchor_hash": bytes(32)}
    found = admin.VerifyAuditLog(pb.VerifyAuditLogRequest(**other)).first_break
    assert (found.sequence, found.fault) == (5, pb.AUDIT_FAULT_REPLACED)
    log("DELETE FROM admin.audit_events WHERE sequence = 5")
    assert not admin.VerifyAuditLog(pb.VerifyAuditLogRequest()).HasField("first_break")
    found = admin.VerifyAuditLog(pb.VerifyAuditLogRequest(**anchor)).first_break
    assert (found.sequence, found.fault) == (5, pb.AUDIT_FAULT_MISSING)


def test_anchor_is_both_or_none(admin: AdminServiceStub) -> None:
    refusal = refused(lambda: admin.VerifyAuditLog(pb.VerifyAuditLogRequest(anchor_sequence=1)))
    assert set(refusal.fields) == {"anchor_hash"}


def test_long_log_is_verified_in_stretches(
    admin: AdminServiceStub, log: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kronos_db.admin.audit_service._MOST_VERIFIED", 2)
    monkeypatch.setattr("kronos_db.admin.audit_service._READ_AT_ONCE", 2)
    first = admin.VerifyAuditLog(pb.VerifyAuditLogRequest())
    assert (first.events, first.next_sequence) == (2, 3)
    log("UPDATE admin.audit_events SET caller = 'eve' WHERE sequence = 3")
    second = admin.VerifyAuditLog(pb.VerifyAuditLogRequest(from_sequence=3))
    assert second.first_break.sequence == 3
    # The event before is not read again, only followed on.
    log("DELETE FROM admin.audit_events WHERE sequence = 2")
    third = admin.VerifyAuditLog(pb.VerifyAuditLogRequest(from_sequence=3))
    assert (third.first_break.sequence, third.first_break.fault) == (2, pb.AUDIT_FAULT_MISSING)
