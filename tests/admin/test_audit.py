from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kronos_db.admin.audit import Event, HashChain, Phase
from kronos_db.admin.audit_store import AuditStore
from kronos_db.embedded.postgres import EmbeddedPostgres
from tests.parts.domain import new_database, opened, settings_of


def an_event(**changes: Any) -> Event:
    return Event(
        sequence=0,
        id=uuid.uuid4(),
        call_id=uuid.uuid4(),
        phase=Phase.REFUSED,
        event_time=datetime.now(UTC),
        caller="ann",
        method="kronos.admin.v1.AdminService/ListAuditEvents",
        request="",
        detail="",
        code="PERMISSION_DENIED",
        reason="METHOD_NOT_ALLOWED",
        request_id="r",
        call_count=1,
        previous_hash=b"",
        hash=b"",
    )._replace(**changes)


@pytest.fixture(scope="module")
def dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    with new_database(postgres) as found:
        yield found


@pytest.fixture(scope="module")
def stores(dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[AuditStore]]:
    """Two, as of two processes."""
    folder: Path = tmp_path_factory.mktemp("audit")
    settings = settings_of(folder, dsn)
    with opened(settings, "admin") as one, opened(settings, "admin") as other:
        chain = HashChain(b"k" * 32)
        yield [AuditStore(one, chain), AuditStore(other, chain)]


def test_events_of_several_processes_are_one_chain(stores: list[AuditStore]) -> None:
    batches = [[an_event(caller=f"writer {each}") for _ in range(3)] for each in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: stores[item[0] % 2].add(item[1]), enumerate(batches)))
    events = stores[0].read(1, 1000)
    assert {event.id for event in events} >= {event.id for batch in batches for event in batch}
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert all(event.previous_hash == before.hash for before, event in itertools.pairwise(events))


def test_event_that_was_added_is_not_added_again(stores: list[AuditStore]) -> None:
    event = an_event(caller="repeated")
    stores[0].add([event])
    stores[1].add([event, an_event(caller="repeated")])
    assert [found.caller for found in stores[0].read(1, 10_000)].count("repeated") == 2


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE admin.audit_events SET caller = 'eve'",
        "DELETE FROM admin.audit_events",
        "TRUNCATE admin.audit_events",
        "SET session_replication_role = replica; DELETE FROM admin.audit_events",
    ],
)
def test_owner_cannot_change_events(stores: list[AuditStore], dsn: str, statement: str) -> None:
    stores[0].add([an_event()])
    before = stores[0].read(1, 10_000)
    with (
        psycopg.connect(dsn) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="only ever added"),
    ):
        connection.execute(statement.encode())
    assert stores[0].read(1, 10_000) == before


@pytest.mark.parametrize("privilege", ["UPDATE", "DELETE", "TRUNCATE", "TRIGGER", "MAINTAIN"])
def test_role_of_the_domain_may_add_and_read_alone(stores: list[AuditStore], dsn: str, privilege: str) -> None:
    with psycopg.connect(dsn) as connection:
        found = connection.execute(
            "SELECT has_table_privilege('kronos_admin', 'admin.audit_events', %s)", (privilege,)
        ).fetchone()
    assert found == (False,)
