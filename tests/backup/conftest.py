"""Databases of the tests of backups, each with a receiver of its WAL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from kronos_db.backup.model import Backup, Kind
from tests.parts.backups import Make, Protected
from tests.parts.memory import memory

ROWS = 2000


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Return a folder of the test's own, in memory."""
    with memory() as folder:
        yield folder


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes databases that are stopped in the end."""
    made: list[Protected] = []

    def protected(**more: object) -> Protected:
        folder = tmp_path / f"protected{len(made)}"
        folder.mkdir()
        made.append(Protected(folder, **more))  # type: ignore[arg-type]
        made[-1].start()
        return made[-1]

    yield protected
    for each in made:
        each.stop()


@dataclass(frozen=True)
class Chained:
    """A database with a full and an incremental backup, and WAL after both. Nobody writes to it."""

    protected: Protected
    full: Backup
    incremental: Backup


@pytest.fixture(scope="module")
def chained() -> Iterator[Chained]:
    """A database for tests that only read it and its backups."""
    with memory() as folder:
        yield from _chained(Protected(folder))


def _chained(protected: Protected) -> Iterator[Chained]:
    protected.start()
    try:
        fill(protected)
        protected.receive()
        full = protected.back_up(Kind.FULL)
        protected.run(f"INSERT INTO users.person (name) SELECT 'second' FROM generate_series(1, {ROWS})")
        incremental = protected.back_up(Kind.INCREMENTAL)
        for _ in range(4):
            protected.run(f"INSERT INTO users.person (name) SELECT 'third' FROM generate_series(1, {ROWS // 4})")
            protected.archived()
        yield Chained(protected, full, incremental)
    finally:
        protected.stop()


def fill(protected: Protected) -> None:
    """Make a schema with tables, and rows that are found again by a marker in them."""
    protected.run(
        "CREATE SCHEMA users",
        "CREATE TABLE users.person (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL)",
        "CREATE TABLE users.visit (person bigint REFERENCES users.person, at timestamptz DEFAULT now()) "
        "PARTITION BY RANGE (at)",
        "CREATE TABLE users.visit_all PARTITION OF users.visit DEFAULT",
        f"INSERT INTO users.person (name) SELECT 'PLAINTEXT-MARKER' FROM generate_series(1, {ROWS})",
        "INSERT INTO users.visit (person) SELECT id FROM users.person",
    )


def names(connection: psycopg.Connection) -> dict[str, int]:
    """Return how many people have each name."""
    return dict(connection.execute("SELECT name, count(*) FROM users.person GROUP BY name").fetchall())
