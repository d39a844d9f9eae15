"""What every destination must do, for a folder and for object storage (moto's server of the S3 protocol)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import boto3
import pytest
from moto.server import ThreadedMotoServer

from kronos_db.backup import objects
from kronos_db.backup.destination import Destination, open_destination
from kronos_db.backup.engine import finish
from kronos_db.backup.model import BackupBusyError, DestinationError, Kind, RestoreRequest
from tests.backup.conftest import ROWS, fill, names
from tests.parts.backups import Make

BUCKET = "kronos"


@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    """The URL of a bucket."""
    credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with mock.patch.dict(os.environ, credentials):
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}/some/place?endpoint={endpoint}"
        server.stop()


@pytest.fixture(params=["folder", "object storage"])
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> Destination:
    """An empty destination of each kind."""
    if request.param == "folder":
        return open_destination(str(tmp_path / "deep" / "folder"))
    found = open_destination(request.getfixturevalue("storage"))
    for stored in found.list(""):
        found.delete(stored.name)
    return found


def read(destination: Destination, name: str) -> bytes:
    source = destination.open(name)
    try:
        return source.read(1 << 20)
    finally:
        source.close()


def test_what_was_put_is_there_and_can_be_replaced_and_deleted(destination: Destination) -> None:
    assert destination.put("a/b/c", [b"some", b"thing"]) == 9
    assert read(destination, "a/b/c") == b"something"
    assert destination.put("a/b/c", []) == 0
    assert read(destination, "a/b/c") == b""
    destination.delete("a/b/c")
    destination.delete("a/b/c")
    with pytest.raises(FileNotFoundError):
        destination.open("a/b/c")


def test_lists_are_by_folder(destination: Destination) -> None:
    for name in ("wal/1/x", "wal/2/y", "walnut/z", "keys/k"):
        destination.put(name, [name.encode()])
    assert {stored.name for stored in destination.list("wal/")} == {"wal/1/x", "wal/2/y"}
    assert {stored.name: stored.size for stored in destination.list("keys/")} == {"keys/k": 6}
    assert list(destination.list("nothing/")) == []


def test_a_put_that_fails_leaves_what_was_there(destination: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_PART", 5 * 1024 * 1024)
    destination.put("x", [b"old"])

    def pieces() -> Iterator[bytes]:
        for _ in range(3):
            yield bytes(5 * 1024 * 1024)
        raise RuntimeError("the source ended")

    with pytest.raises(RuntimeError):
        destination.put("x", pieces())
    assert read(destination, "x") == b"old"
    assert [stored.name for stored in destination.list("")] == ["x"]


def test_long_objects_are_whole(destination: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_PART", 5 * 1024 * 1024)
    block = os.urandom(1024 * 1024)
    assert destination.put("long", (block for _ in range(12))) == 12 * len(block)
    source = destination.open("long")
    assert all(source.read(len(block)) == block for _ in range(12))
    assert source.read(1) == b""
    source.close()


def test_a_lock_is_held_by_one(destination: Destination) -> None:
    other = open_destination(destination.url)
    with destination.lock("one"):
        with other.lock("another"):
            pass
        with pytest.raises(BackupBusyError), other.lock("one"):
            pass
    with other.lock("one"):
        pass
    assert [stored.name for stored in destination.list("")] == []


def test_the_lock_of_a_dead_process_is_taken_over(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, living = open_destination(storage), open_destination(storage)
    held = dead.lock("one")
    held.__enter__()
    with pytest.raises(BackupBusyError), living.lock("one"):
        pass
    monkeypatch.setattr(objects, "_EXPIRY", -1.0)
    with living.lock("one"):
        pass
    held.__exit__(None, None, None)


def test_other_urls_are_refused() -> None:
    for url in ("ftp://host/x", "s3:///no-bucket", "file://host/x"):
        with pytest.raises(DestinationError):
            open_destination(url)


def test_object_storage_that_does_not_answer_is_told() -> None:
    with mock.patch.dict(os.environ, {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_MAX_ATTEMPTS": "1"}):
        away = open_destination("s3://bucket/x?endpoint=http://127.0.0.1:9&region=us-east-1")
        with pytest.raises(DestinationError):
            away.put("x", [b"y"])


@pytest.mark.timeout(180)
def test_a_backup_in_object_storage_is_restored(make: Make, storage: str) -> None:
    """Backup, archive, and a recovery whose restore_command fetches from there too."""
    protected = make(destination=storage)
    fill(protected)
    protected.receive()
    protected.back_up(Kind.FULL)
    protected.run("INSERT INTO users.person (name) VALUES ('archived')")
    protected.archived()
    backup = protected.back_up(Kind.INCREMENTAL)
    assert finish(protected.engine().verify(backup.id)).sound
    protected.stop()
    finish(protected.engine(database=False).restore(RestoreRequest(protected.folder / "restored" / "data")))
    with protected.restored("restored") as connection:
        assert names(connection) == {"PLAINTEXT-MARKER": ROWS, "archived": 1}
