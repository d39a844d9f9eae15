"""The archive of WAL: what is missing is found, and what recovery gets is never taken for the end by mistake."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from kronos_db.backup import fetch
from kronos_db.backup.directory import Directory
from kronos_db.backup.model import ArchiveGapError, BackupDamagedError, BackupKeyError, Gap, Lsn
from kronos_db.backup.vault import Vault
from kronos_db.backup.wal import Piece, WalArchive, cover, gaps, parse_history, parse_segment_name, segment_name
from kronos_db.runtime.crypto.master_key import FileMasterKeys, create_master_key_file

SIZE = 4096
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def piece(start: int, end: int, timeline: int = 1) -> Piece:
    return Piece(timeline, Lsn(start), Lsn(end), 0, NOW)


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    create_master_key_file(tmp_path / "master.key")
    return Vault(Directory(tmp_path / "backups"), FileMasterKeys(tmp_path / "master.key"))


@pytest.fixture
def archive(vault: Vault) -> WalArchive:
    return WalArchive(vault, 7)


def put(archive: WalArchive, start: int, end: int, timeline: int = 1) -> None:
    archive.put(archive.usable_key(), timeline, Lsn(start), bytes(1 + place % 251 for place in range(start, end)))


def test_names_of_segments_are_those_of_postgresql() -> None:
    size = 16 * 1024 * 1024
    assert segment_name(1, Lsn.parse("0/3000028"), size) == "000000010000000000000003"
    assert segment_name(3, Lsn.parse("2/FF000000"), size) == "0000000300000002000000FF"
    assert parse_segment_name("0000000300000002000000FF", size) == (3, Lsn.parse("2/FF000000"))
    assert parse_segment_name("00000002.history", size) is None


def test_gaps_are_what_no_piece_has() -> None:
    pieces = [piece(0, 10), piece(5, 20), piece(30, 40), piece(0, 99, timeline=2)]
    assert gaps(pieces, 1, Lsn(0)) == [Gap(1, Lsn(20), Lsn(30))]
    assert gaps(pieces, 1, Lsn(12), Lsn(15)) == []
    assert gaps(pieces, 1, Lsn(25), Lsn(50)) == [Gap(1, Lsn(25), Lsn(30)), Gap(1, Lsn(40), Lsn(50))]
    assert gaps([], 1, Lsn(0), Lsn(5)) == [Gap(1, Lsn(0), Lsn(5))]


def test_a_cover_leaves_out_what_adds_nothing() -> None:
    pieces = [piece(0, 4), piece(0, 10), piece(4, 8), piece(10, 12), piece(20, 30)]
    assert list(cover(pieces, Lsn(0), Lsn(30))) == [piece(0, 10), piece(10, 12), piece(20, 30)]


def test_a_segment_is_made_of_pieces_and_padded_at_the_end_of_the_archive(archive: WalArchive) -> None:
    put(archive, 0, SIZE)
    put(archive, SIZE, SIZE + 100)
    put(archive, SIZE + 100, SIZE + 150)
    assert archive.segment(1, Lsn(0), SIZE) == bytes(1 + place % 251 for place in range(SIZE))
    last = archive.segment(1, Lsn(SIZE), SIZE)
    assert last == bytes(1 + place % 251 for place in range(SIZE, SIZE + 150)) + bytes(SIZE - 150)
    assert archive.segment(1, Lsn(2 * SIZE), SIZE) is None


@pytest.mark.parametrize("lacking", [(SIZE, 2 * SIZE), (SIZE + 100, 2 * SIZE), (SIZE, SIZE + 100)])
def test_a_gap_is_not_taken_for_the_end(archive: WalArchive, lacking: tuple[int, int]) -> None:
    put(archive, 0, SIZE)
    for start, end in ((SIZE, lacking[0]), (lacking[1], 3 * SIZE)):
        if start < end:
            put(archive, start, end)
    with pytest.raises(ArchiveGapError):
        archive.segment(1, Lsn(SIZE), SIZE)
    assert archive.missing(1, (1, Lsn(0))) == [Gap(1, Lsn(lacking[0]), Lsn(lacking[1]))]


def test_a_timeline_leads_on_from_where_it_left_the_one_before(archive: WalArchive) -> None:
    key = archive.usable_key()
    put(archive, 0, 3 * SIZE)
    archive.put_history(key, 2, f"1\t{Lsn(SIZE + 50)}\tno recovery target specified\n".encode())
    put(archive, SIZE, 2 * SIZE, timeline=2)
    assert parse_history(archive.history(2) or b"")[0].end == SIZE + 50
    assert archive.missing(2, (1, Lsn(0))) == []
    archive.delete(piece(SIZE, 2 * SIZE, timeline=2))
    put(archive, SIZE + 100, 2 * SIZE, timeline=2)
    assert archive.missing(2, (1, Lsn(0))) == [Gap(2, Lsn(SIZE + 50), Lsn(SIZE + 100))]


def test_a_piece_does_not_open_at_another_place(archive: WalArchive, tmp_path: Path) -> None:
    put(archive, 0, SIZE)
    (stored,) = (tmp_path / "backups" / "wal").rglob("*-*")
    stored.rename(stored.with_name(f"{SIZE:016X}-{2 * SIZE:016X}"))
    with pytest.raises(BackupDamagedError):
        archive.segment(1, Lsn(SIZE), SIZE)


def test_another_master_key_does_not_begin_an_archive_of_its_own_in_the_same_place(
    archive: WalArchive, tmp_path: Path
) -> None:
    put(archive, 0, SIZE)
    create_master_key_file(tmp_path / "other.key")
    other = Vault(Directory(tmp_path / "backups"), FileMasterKeys(tmp_path / "other.key"))
    with pytest.raises(BackupKeyError):
        WalArchive(other, 7).usable_key()


def test_the_restore_command_tells_the_end_of_the_archive_from_everything_else(
    archive: WalArchive, tmp_path: Path
) -> None:
    """PostgreSQL takes 1 for the end of the history, and ends for codes above 125."""
    put(archive, 0, SIZE)
    archive.put_history(archive.usable_key(), 2, b"1\t0/50\tno reason\n")

    def fetched(name: str) -> int:
        arguments = [str(tmp_path / "backups"), str(tmp_path / "master.key"), "7", str(SIZE), name]
        return fetch.main([*arguments, str(tmp_path / "fetched")])

    assert fetched(segment_name(1, 0, SIZE)) == 0
    assert (tmp_path / "fetched").read_bytes() == archive.segment(1, Lsn(0), SIZE)
    assert fetched("00000002.history") == 0
    assert fetched("00000003.history") == 1
    assert fetched(segment_name(1, SIZE, SIZE)) == 1
    put(archive, 2 * SIZE, 3 * SIZE)
    assert fetched(segment_name(1, SIZE, SIZE)) > 125
    (tmp_path / "master.key").unlink()
    assert fetched(segment_name(1, 0, SIZE)) > 125
