"""PostgreSQL crashes and gives numbers of transactions again: no position skips a change, no moment goes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.changes import Change, Position, moment
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.transaction import Transaction
from tests.parts.domain import mutation, opened, settings_of


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "postgres", {"fsync": "off", "wal_writer_delay": "10s"})
    server.start()
    yield server
    server.stop("immediate")


@pytest.fixture
def users(own_postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Database]:
    with opened(settings_of(tmp_path, own_postgres.dsn)) as database:
        yield database


def change(database: Database, name: str) -> None:
    def work(tx: Transaction) -> str:
        tx.note(Change("thing", name))
        return name

    database.write(work, mutation())


def spend_numbers(dsn: str, count: int) -> int:
    """Use up numbers of transactions that nothing durable has; return the last one."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(count):
            connection.execute("BEGIN")
            row = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
            connection.execute("ROLLBACK")
    assert row is not None
    return int(row[0])


def test_numbers_that_were_given_again(users: Database, own_postgres: EmbeddedPostgres) -> None:
    change(users, "before")
    last = spend_numbers(own_postgres.dsn, 50)
    position = Position(users.instant().snapshot)
    own_postgres.stop("immediate")
    own_postgres.start()
    change(users, "after")
    with psycopg.connect(own_postgres.dsn) as connection:
        row = connection.execute("SELECT max(xid::text::bigint) FROM users.change").fetchone()
    assert row is not None
    assert row[0] < last, "the numbers were not given again: this test shows nothing"
    page = users.changes_since(position, 10)
    assert [noted.change.record_id for noted in page.changes] == ["after"]
    assert moment(page.snapshot) > moment(position.seen)
