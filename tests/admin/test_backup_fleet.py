"""Backups in a fleet: whoever is killed, the next process goes on with runs, schedule and archive."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString

import grpc
import psycopg
import pytest
from kronos.admin.v1 import backups_pb2 as pb
from kronos.admin.v1.admin_pb2_grpc import AdminServiceStub
from kronos.users.v1 import users_pb2
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from kronos_db.embedded.postgres import EmbeddedPostgres
from tests.parts.domain import LIMIT
from tests.parts.eventually import eventually
from tests.parts.fleet import Fleet


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Fleet, EmbeddedPostgres]]:
    """Two processes that back a PostgreSQL of their own up, and commits that wait for the archive."""
    postgres = EmbeddedPostgres(tmp_path / "postgres", {"fsync": "off"})
    postgres.start()
    fleet = Fleet(
        tmp_path,
        postgres.dsn,
        backup_destination=str(tmp_path / "backups"),
        backup_scratch_folder=tmp_path / "scratch",
        backup_synchronous=True,
    )
    fleet.start()
    try:
        fleet.await_ready()
        yield fleet, postgres
    finally:
        fleet.stop()
        postgres.stop("immediate")


def receiver(postgres: EmbeddedPostgres) -> list[tuple[Any, ...]]:
    """Who receives WAL, by the process of PostgreSQL that sends it, and whether commits wait for that."""
    return asked(postgres, "SELECT pid, sync_state FROM pg_stat_replication WHERE state = 'streaming'")


def asked(postgres: EmbeddedPostgres, question: LiteralString) -> list[tuple[Any, ...]]:
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        return connection.execute(question).fetchall()


def persistently(call: Any, request: Any, bearer: Any) -> list[Any]:
    """Follow a run, again when the process that told of it is gone."""
    for _ in range(100):
        try:
            return list(call(request, metadata=bearer, timeout=LIMIT * 3, wait_for_ready=True))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
    raise AssertionError("nobody answers")


def test_killed_holders_are_followed(site: tuple[Fleet, EmbeddedPostgres]) -> None:
    fleet, postgres = site
    eventually(lambda: [state for _, state in receiver(postgres)] == ["sync"], LIMIT * 2, lambda: receiver(postgres))
    with grpc.insecure_channel(fleet.settings.grpc_listen) as channel:
        admin, users = AdminServiceStub(channel), UsersServiceStub(channel)
        # The first full one, which the schedule makes, and what follows it.
        over = "SELECT FROM admin.backup_run WHERE task = 'retain' AND state = 'done'"
        eventually(lambda: asked(postgres, over), LIMIT * 2)
        request = pb.CreateBackupRequest(kind=pb.BACKUP_KIND_FULL, label="asked", request_id=str(uuid.uuid4()))
        stream = admin.CreateBackup(request, metadata=fleet.bearer, timeout=LIMIT)
        run_id = next(message for message in stream if message.HasField("progress")).run_id
        before = receiver(postgres)
        killed = fleet.children()
        for process in killed:
            process.kill()
        last = persistently(admin.CreateBackup, request, fleet.bearer)[-1]
        assert (last.run_id, last.backup.label) == (run_id, "asked")
        # Nobody else has it under its name, and what the killed process left is not taken for a backup.
        listed = admin.ListBackups(pb.ListBackupsRequest(), metadata=fleet.bearer).backups
        assert [backup.id for backup in listed if backup.label == "asked" and backup.stop_lsn] == [last.backup.id]
        # Commits wait for the archive, so this one is answered by whoever follows the killed receiver.
        user = users_pb2.User(username="after", email="after@example.org")
        created = users_pb2.CreateUserRequest(user=user, request_id=str(uuid.uuid4()))
        assert users.CreateUser(created, metadata=fleet.bearer, timeout=LIMIT).user.id
        assert receiver(postgres) != before
        assert not admin.ListBackups(pb.ListBackupsRequest(), metadata=fleet.bearer).archive.gaps
    fleet.await_ready()
    name = 'kronos_db_background_holder{domain="admin",work="archive-wal"}'
    eventually(lambda: fleet.metrics().get(name) == 1, LIMIT, lambda: fleet.metrics().get(name))
