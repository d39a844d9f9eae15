"""Verification and drills: whatever is wrong with a backup is found before anyone needs it."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from kronos_db.backup.catalog import Catalog
from kronos_db.backup.destination import open_destination
from kronos_db.backup.engine import finish
from kronos_db.backup.model import BackupKeyError, BackupNotFoundError, State, TableContent, VerifyReport
from kronos_db.backup.postgres import PostgresEngine, Setup
from kronos_db.backup.vault import Vault
from kronos_db.runtime.crypto.master_key import FileMasterKeys, create_master_key_file
from tests.backup.conftest import ROWS, Chained

FLIPS = 100


@pytest.fixture
def copy(chained: Chained, tmp_path: Path) -> Path:
    """A copy of the destination, to be damaged."""
    shutil.copytree(chained.protected.destination, tmp_path / "copy")
    return tmp_path / "copy"


def engine_on(chained: Chained, destination: Path) -> PostgresEngine:
    return PostgresEngine(Setup(str(destination), chained.protected.key_file, destination / "scratch"))


def verified(chained: Chained, destination: Path) -> VerifyReport:
    return finish(engine_on(chained, destination).verify(chained.incremental.id))


def objects(destination: Path) -> list[Path]:
    return sorted(path for path in destination.rglob("*") if path.is_file() and ".locks" not in path.parts)


def test_a_sound_backup_is_sound_to_the_end_of_the_archive(chained: Chained, copy: Path) -> None:
    report = verified(chained, copy)
    assert report.sound, report.faults
    assert report.chain == (chained.full.id, chained.incremental.id)
    assert report.restorable_until == chained.protected.engine().archive_state().last
    assert report.bytes > chained.full.size + chained.incremental.size


def test_every_flipped_byte_is_found(chained: Chained, copy: Path) -> None:
    """Of every kind of object: records, manifests, data keys, base backups, WAL."""
    chance = random.Random(11)
    found = 0
    needed = [path for path in objects(copy) if needed_by_chain(chained, copy, path)]
    for number in range(FLIPS):
        # Each object has its turn, then at random.
        path = needed[number] if number < len(needed) else chance.choice(needed)
        place = chance.randrange(path.stat().st_size)
        bits = chance.randint(1, 255)
        flip(path, place, bits)
        found += not verified(chained, copy).sound
        flip(path, place, bits)
    assert found == FLIPS
    assert verified(chained, copy).sound


def needed_by_chain(chained: Chained, copy: Path, path: Path) -> bool:
    """Return whether the chain needs an object: WAL from before the last stop is in the base backups."""
    if path.parts[len(copy.parts)] != "wal":
        return True
    end = int(path.name.split("-")[1], 16)
    return end > (chained.incremental.stop_lsn or 0)


def flip(path: Path, place: int, bits: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ bits]))


def test_every_missing_object_is_found(chained: Chained, copy: Path) -> None:
    needed = [path for path in objects(copy) if needed_by_chain(chained, copy, path)]
    # What is missing at the end of the archive nobody can know of.
    last = max((path for path in needed if "wal" in path.parts), key=lambda path: path.name)
    for path in needed:
        content = path.read_bytes()
        path.unlink()
        if path != last:
            assert not missing_is_sound(chained, copy), path
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    assert verified(chained, copy).sound


def missing_is_sound(chained: Chained, copy: Path) -> bool:
    try:
        return verified(chained, copy).sound
    except BackupNotFoundError:
        return False


def test_a_wrong_master_key_is_told_from_damage(chained: Chained, copy: Path, tmp_path: Path) -> None:
    create_master_key_file(tmp_path / "other.key")
    engine = PostgresEngine(Setup(str(copy), tmp_path / "other.key", tmp_path / "scratch"))
    with pytest.raises(BackupKeyError):
        engine.list()
    report = finish(engine.verify(chained.full.id))
    assert "master key" in report.faults[0].what


def test_an_object_of_another_backup_does_not_pass(chained: Chained, copy: Path) -> None:
    backups = copy / "backups"
    shutil.copy(backups / chained.full.id / "base.tar", backups / chained.incremental.id / "base.tar")
    assert not verified(chained, copy).sound


def test_a_drill_makes_a_backup_verified_and_keeps_what_it_took(chained: Chained) -> None:
    engine = chained.protected.engine()
    assert engine.get(chained.incremental.id).state is State.COMPLETE
    report = finish(engine.drill(chained.incremental.id))
    assert report.sound, report.faults
    assert report.rows == 3 * ROWS
    backup = engine.get(chained.incremental.id)
    assert backup.state is State.VERIFIED
    assert backup.drill is not None
    assert engine.expected_recovery_seconds() == report.restore_seconds == backup.drill.restore_seconds
    assert engine.get(chained.full.id).state is State.COMPLETE


def test_a_drill_finds_content_that_the_database_did_not_have(chained: Chained, copy: Path) -> None:
    """The record is told that the database had another content: a row more, and one that was different."""
    catalog = Catalog(Vault(open_destination(str(copy)), FileMasterKeys(chained.protected.key_file)))
    backup = catalog.get(chained.full.id)
    content = backup.content
    assert content is not None
    person = content.tables["kronos"]["users.person"]
    visits = content.tables["kronos"]["users.visit_all"]
    tables = {
        "kronos": {
            "users.person": TableContent(person.rows, str(int(person.digest) + 1)),
            "users.visit_all": TableContent(visits.rows + 1, visits.digest),
        }
    }
    catalog.put(replace(backup, content=replace(content, tables=tables)))
    setup = Setup(str(copy), chained.protected.key_file, copy / "scratch", chained.protected.postgres.dsn)
    report = finish(PostgresEngine(setup).drill(chained.full.id))
    assert {fault.where for fault in report.faults} == {"kronos: users.person", "kronos: users.visit_all"}
    assert catalog.get(chained.full.id).state is State.COMPLETE


def test_content_is_that_of_its_position_while_others_write(chained: Chained) -> None:
    """Hashes of the same rows are equal, whatever the session's settings, and change with any row."""
    source = chained.protected.engine()._source()
    before = source.hashes()
    assert before == source.hashes()
    with psycopg.connect(chained.protected.postgres.dsn) as connection:
        connection.execute("UPDATE users.visit_all SET at = at + interval '1 microsecond' WHERE person = 1")
        assert source.hashes() == before
        connection.rollback()
