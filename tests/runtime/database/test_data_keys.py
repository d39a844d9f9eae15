"""The data keys of a domain in PostgreSQL: one set of keys, whoever comes first and whoever comes later."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from kronos_db.config import Settings
from kronos_db.runtime.crypto.keyring import DataKeyRow, KeyRing, Purpose
from kronos_db.runtime.crypto.master_key import FileMasterKeys
from kronos_db.runtime.database.data_keys import DataKeys
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.identifiers import uuid7
from kronos_db.schemas import open_database
from tests.parts.domain import LIMIT, opened, settings_of


@pytest.fixture
def settings(database: str, tmp_path: Path) -> Settings:
    return settings_of(tmp_path, database)


@pytest.fixture
def users(settings: Settings) -> Iterator[Database]:
    with opened(settings) as users:
        yield users


@pytest.fixture
def masters(settings: Settings) -> FileMasterKeys:
    assert settings.master_key_file is not None
    return FileMasterKeys(settings.master_key_file)


def row(purpose: Purpose = Purpose.SEAL, person: uuid.UUID | None = None) -> DataKeyRow:
    return DataKeyRow(uuid7(), purpose, person, "master", b"wrapped", datetime.now(UTC))


def test_processes_that_race_on_first_start_agree(
    settings: Settings, users: Database, masters: FileMasterKeys, database: str
) -> None:
    """Each has a pool of its own, and all have looked before the first one adds."""
    racers = 4
    barrier = threading.Barrier(racers, timeout=LIMIT)

    class Racing(DataKeys):
        def load(self) -> Sequence[DataKeyRow]:
            loaded = super().load()
            barrier.wait()
            return loaded

    def start(_number: int) -> tuple[uuid.UUID, bytes, bytes]:
        own = open_database(settings, "users")
        try:
            ring = KeyRing("users", masters, Racing(own))
            return ring.seal_key().id, ring.seal_key().key, ring.subkey("a label")
        finally:
            own.pool.close()

    with ThreadPoolExecutor(racers) as threads:
        seen = list(threads.map(start, range(racers)))
    assert len(set(seen)) == 1
    with psycopg.connect(database) as admin:
        found = admin.execute("SELECT purpose, is_current FROM users.data_key ORDER BY 1").fetchall()
    assert found == [("index", True), ("seal", True)]


def test_a_restart_finds_the_keys(settings: Settings, users: Database, masters: FileMasterKeys) -> None:
    first = KeyRing("users", masters, DataKeys(users))
    users.pool.close()
    with opened(settings) as again:
        second = KeyRing("users", masters, DataKeys(again))
        assert second.seal_key() == first.seal_key()
        assert second.index_key == first.index_key
        third = KeyRing("users", masters, DataKeys(again))
        assert third.key(first.seal_key().id_bytes) == first.seal_key()


def test_add_first_keeps_the_one_that_is_there(users: Database) -> None:
    keys = DataKeys(users)
    first, second, index = row(), row(), row(Purpose.INDEX)
    assert keys.add_first(first) == first
    assert keys.add_first(second) == first
    assert keys.add_first(index) == index
    assert sorted(keys.load(), key=lambda kept: kept.id) == [first, index]
    assert keys.find(second.id) is None


def test_keys_of_persons_are_apart(users: Database) -> None:
    keys, person = DataKeys(users), uuid.uuid4()
    own, of_person, of_another = row(), row(person=person), row(person=uuid.uuid4())
    for wanted in (own, of_person, of_another):
        assert keys.add_first(wanted) == wanted
    assert keys.add_first(row(person=person)) == of_person
    assert keys.load() == [own]
    assert keys.find(of_person.id) == of_person
    assert keys.find(uuid7()) is None
