"""The data keys of a domain: made once, found by id, bound to their row."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest

from kronos_db.runtime.crypto import keyring
from kronos_db.runtime.crypto.keyring import DataKeyRow, DataKeyRows, KeyRing, Purpose
from kronos_db.runtime.crypto.master_key import FileMasterKeys
from kronos_db.runtime.errors import KeyUnavailableError
from kronos_db.runtime.identifiers import uuid7

if TYPE_CHECKING:
    from tests.runtime.crypto.conftest import MemoryRows


def sealed_row(
    ring: KeyRing, purpose: Purpose = Purpose.SEAL, person: UUID | None = None, age: timedelta = timedelta()
) -> DataKeyRow:
    """Make a row as `ring` would, for another purpose, person or time."""
    key_id = uuid7()
    wrapped = ring._masters.wrap(bytes(32), ring._context(key_id, purpose, person))
    return DataKeyRow(key_id, purpose, person, wrapped.master_key_id, wrapped.ciphertext, datetime.now(UTC) - age)


def test_makes_the_first_keys_once(masters: FileMasterKeys, rows: MemoryRows) -> None:
    first = KeyRing("users", masters, rows)
    assert sorted(row.purpose for row in rows.rows) == ["index", "seal"]
    second = KeyRing("users", masters, rows)
    assert len(rows.rows) == 2
    assert first.seal_key() == second.seal_key()
    assert first.index_key == second.index_key
    assert first.seal_key().key != first.index_key.key


def test_the_database_holds_no_key(masters: FileMasterKeys, rows: MemoryRows) -> None:
    ring = KeyRing("users", masters, rows)
    for key in (ring.seal_key(), ring.index_key):
        assert all(key.key not in row.wrapped for row in rows.rows)


def test_processes_that_race_on_first_start_agree(masters: FileMasterKeys, rows: MemoryRows) -> None:
    barrier = threading.Barrier(8, timeout=30)

    class Racing:
        """All load before the first one adds."""

        add_first, find = rows.add_first, rows.find

        def load(self) -> Sequence[DataKeyRow]:
            loaded = rows.load()
            barrier.wait()
            return loaded

    racing: DataKeyRows = Racing()
    with ThreadPoolExecutor(8) as pool:
        rings = list(pool.map(lambda _: KeyRing("users", masters, racing), range(8), timeout=60))
    assert len(rows.rows) == 2
    assert len({ring.seal_key().key for ring in rings}) == 1
    assert len({ring.subkey("page token") for ring in rings}) == 1


def test_the_newest_key_of_the_domain_is_the_current_one(masters: FileMasterKeys, rows: MemoryRows) -> None:
    ring = KeyRing("users", masters, rows)
    older, newer = sealed_row(ring, age=timedelta(days=1)), sealed_row(ring, age=timedelta(days=-1))
    rows.rows[:] = [newer, *rows.rows, older]
    again = KeyRing("users", masters, rows)
    assert again.seal_key().id == newer.id
    for row in (older, newer):
        found = again.key(row.id.bytes)
        assert found is not None
        assert found.id == row.id
    assert rows.finds == 0


def test_finds_a_key_made_elsewhere_and_keeps_it(masters: FileMasterKeys, rows: MemoryRows) -> None:
    ring = KeyRing("users", masters, rows)
    person = uuid4()
    rows.rows += [sealed_row(ring), sealed_row(ring, person=person)]
    for row in rows.rows[-2:]:
        found = [ring.key(row.id.bytes) for _ in range(3)]
        assert found[0] is not None
        assert found[0].person == row.person
        assert found[0] is found[1] is found[2]
    assert rows.finds == 2


def test_holds_a_bounded_number_of_persons_keys(
    masters: FileMasterKeys, rows: MemoryRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "_FOUND_LIMIT", 3)
    ring = KeyRing("users", masters, rows)
    rows.rows += [sealed_row(ring, person=uuid4()) for _ in range(5)]
    assert all(ring.key(row.id.bytes) for row in rows.rows)
    assert len(ring._found) == 3
    assert ring.key(rows.rows[2].id.bytes) is not None


def test_an_unknown_id_is_looked_up_once_for_a_while(masters: FileMasterKeys, rows: MemoryRows) -> None:
    now = 0.0
    ring = KeyRing("users", masters, rows, clock=lambda: now)
    unknown = uuid7().bytes
    assert [ring.key(unknown) for _ in range(5)] == [None] * 5
    assert rows.finds == 1
    now += keyring._MISSING_SECONDS
    assert ring.key(unknown) is None
    assert rows.finds == 2


def test_forged_ids_do_not_hammer_the_database(masters: FileMasterKeys, rows: MemoryRows) -> None:
    now = 0.0
    ring = KeyRing("users", masters, rows, clock=lambda: now)
    forged = [uuid7().bytes for _ in range(keyring._MISSING_LIMIT + 1)]
    for key_id in forged[:-1]:
        assert ring.key(key_id) is None
    with pytest.raises(KeyUnavailableError, match="too many unknown ids"):
        ring.key(forged[-1])
    assert rows.finds == keyring._MISSING_LIMIT
    assert ring.key(ring.seal_key().id_bytes) is ring.seal_key()
    now += keyring._MISSING_SECONDS
    assert ring.key(forged[-1]) is None
    assert len(ring._missing) == 1


def test_does_not_wait_for_ever_behind_another_look_up(
    masters: FileMasterKeys, rows: MemoryRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "_LOOK_UP_SECONDS", 0.01)
    ring = KeyRing("users", masters, rows)
    with ring._lock, pytest.raises(KeyUnavailableError, match="take too long"):
        ring.key(uuid7().bytes)
    assert ring.key(uuid7().bytes) is None


def test_a_failing_database_leaves_no_lock_behind(
    masters: FileMasterKeys, rows: MemoryRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = KeyRing("users", masters, rows)

    def fail(_: UUID) -> DataKeyRow | None:
        raise OSError("away")

    monkeypatch.setattr(rows, "find", fail)
    for _ in range(2):
        with pytest.raises(OSError, match="away"):
            ring.key(uuid7().bytes)
    assert ring._missing == {}


def test_a_wrapped_key_is_bound_to_its_row(masters: FileMasterKeys, rows: MemoryRows) -> None:
    ring = KeyRing("users", masters, rows)
    good = sealed_row(ring, person=uuid4())
    for altered in (
        dataclasses.replace(good, id=uuid7()),
        dataclasses.replace(good, purpose=Purpose.INDEX),
        dataclasses.replace(good, person=uuid4()),
        dataclasses.replace(good, person=None),
        dataclasses.replace(good, wrapped=good.wrapped[::-1]),
        dataclasses.replace(good, master_key_id="gone"),
    ):
        rows.rows = [altered]
        with pytest.raises(KeyUnavailableError, match=str(altered.id)):
            ring.key(altered.id.bytes)


def test_a_domain_does_not_take_the_keys_of_another(masters: FileMasterKeys, rows: MemoryRows) -> None:
    KeyRing("users", masters, rows)
    with pytest.raises(KeyUnavailableError, match="of tokens"):
        KeyRing("tokens", masters, rows)


def test_subkeys_differ_by_label_and_domain(masters: FileMasterKeys, rows: MemoryRows) -> None:
    ring = KeyRing("users", masters, rows)
    assert len(ring.subkey("page token")) == 32
    assert ring.subkey("page token") == ring.subkey("page token")
    assert len({ring.subkey("page token"), ring.subkey("fingerprint"), ring.index_key.key}) == 3


def test_shows_no_key(masters: FileMasterKeys, rows: MemoryRows) -> None:
    ring = KeyRing("users", masters, rows)
    assert repr(ring) == "KeyRing('users', 2 keys)"
    key = ring.seal_key()
    assert repr(key) == f"DataKey(id={key.id!r}, purpose=<Purpose.SEAL: 'seal'>, person=None)"
    assert "wrapped" not in repr(rows.rows[0])
