"""Backups with PostgreSQL's own programs, by the commands that operations.md tells to type."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from kronos.users.v1 import users_pb2 as pb

from kronos_db.config import PREFIX
from kronos_db.embedded.postgres import EmbeddedPostgres
from tests.parts.dev import PROGRAM
from tests.parts.domain import LIMIT
from tests.parts.eventually import eventually
from tests.parts.serving import Serving

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


class Site:
    """A PostgreSQL of its own with a server that backs it up, and the commands of an operator there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres = EmbeddedPostgres(folder / "postgres", {"fsync": "off"})
        self.postgres.start()
        self.serving = Serving(
            folder,
            self.postgres.dsn,
            backup_destination=str(folder / "backups"),
            backup_scratch_folder=folder / "scratch",
            backup_restore_folder=folder / "restored",
        )
        self.serving.start()

    def close(self) -> None:
        self.serving.stop()
        self.postgres.stop("immediate")

    def run(self, line: str, code: int = 0) -> str:
        """Run a line as it is typed, and return what it prints."""
        program, *words = shlex.split(line, comments=True)
        assert program == "kronos-db"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        settings = {
            "KRONOS_DB_GRPC_LISTEN": self.serving.server.grpc_address,
            "KRONOS_TOKEN": self.serving.tokens["operator"],
            "KRONOS_DB_BACKUP_DESTINATION": str(self.folder / "backups"),
            "KRONOS_DB_MASTER_KEY_FILE": str(self.folder / "master.key"),
        }
        done = subprocess.run(
            [PROGRAM, *words],
            env={**inherited, **settings},
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT * 3,
        )
        assert done.returncode == code, f"{line}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def listed(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("kronos-db backup list --json"))
        return found

    def archived(self, moment: datetime) -> None:
        """Return when the archive has all that was written until a moment."""

        def has() -> bool:
            told = self.listed()["archive"].get("last_time")
            return told is not None and datetime.fromisoformat(told) > moment

        with psycopg.connect(self.postgres.dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_switch_wal()")
        eventually(has, LIMIT)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    # The schedule makes the first full one by itself.
    with psycopg.connect(made.postgres.dsn, autocommit=True) as connection:
        first = "SELECT FROM admin.backup_run WHERE kind = 'create' AND state = 'done'"
        eventually(lambda: connection.execute(first).fetchone() is not None, LIMIT)
    yield made
    made.close()


def commands(heading: str) -> list[str]:
    """The commands of a section, or of one of the paragraphs that begin with bold words, as the page has them."""
    text = PAGE.read_text(encoding="utf-8")
    begin = text.index(heading)
    end = re.search(r"^(#+ |\*\*)", text[begin + len(heading) :], re.MULTILINE)
    part = text[begin : begin + len(heading) + end.start()] if end else text[begin:]
    return re.findall(r"^    (kronos-db backup .*)$", part, re.MULTILINE)


def user(name: str) -> pb.CreateUserRequest:
    return pb.CreateUserRequest(user=pb.User(username=name, email=f"{name}@example.org"))


def test_a_command_waits_for_the_run_that_is_under_way(site: Site) -> None:
    """As on a new server, whose schedule has just begun a backup when its operator asks for one."""
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda n: site.run(f"kronos-db backup create --label {n} --json"), range(2)))
    ids = {json.loads(each)["id"] for each in made}
    assert len(ids) == 2
    # The next tests look at what they make alone.
    for each in sorted(ids, reverse=True):
        site.run(f"kronos-db backup delete {each}")


def test_day_by_day(site: Site) -> None:
    lines = commands("### Day by day")
    assert len(lines) == 6
    for line in lines[:3]:
        site.run(line)
    labels = {backup.get("label", "") for backup in site.listed()["backups"]}
    assert labels == {"scheduled", "before the migration", ""}
    assert "sound, restorable until" in site.run(lines[3])
    assert "sound" in site.run(lines[4])
    newest = site.listed()["backups"][0]
    assert newest["state"] == "BACKUP_STATE_VERIFIED"
    assert newest["restore_time"]
    assert f"{newest['id']} removed." in site.run(lines[5].replace("ID", newest["id"]))


def test_the_disk_is_gone(site: Site, tmp_path: Path) -> None:
    site.run("kronos-db backup create")
    before = site.listed()["backups"]
    lines = commands("**PostgreSQL and its disk are gone.**")
    assert len(lines) == 3
    for line in lines[:2]:
        assert before[0]["id"] in site.run(line)
    folder = tmp_path / "main"
    printed = site.run(lines[2].replace("/var/lib/postgresql/18/main", str(folder)))
    assert f"{folder}: restored up to " in printed
    assert (folder / "PG_VERSION").read_text().strip() == "18"
    # Onto what is there by now it is refused, and nothing is touched.
    site.run(lines[2].replace("/var/lib/postgresql/18/main", str(folder)), code=1)
    assert (folder / "PG_VERSION").exists()


def test_up_to_just_before(site: Site, tmp_path: Path) -> None:
    users = site.serving.users()
    users.CreateUser(user("kept"))
    users.CreateUser(user("mistake"))
    with psycopg.connect(site.postgres.dsn) as connection:
        [(xid,)] = connection.execute("SELECT xmin::text FROM users.users WHERE username = 'mistake'").fetchall()
    site.archived(datetime.now(UTC))
    by_time, by_transaction = commands("**Somebody deleted or changed")
    moment = datetime.now(UTC).isoformat(timespec="milliseconds")
    site.run(re.sub(r"(--into) \S+ (--time) \S+", rf"\1 {tmp_path}/time \2 {moment}", by_time))
    line = re.sub(r"(--into) \S+ (--before-transaction) \S+", rf"\1 {tmp_path}/transaction \2 {xid}", by_transaction)
    site.run(line)
    assert found(site, tmp_path / "time") == {"kept", "mistake"}
    assert found(site, tmp_path / "transaction") == {"kept"}


def found(site: Site, data: Path) -> set[str]:
    """Start what was restored, and return the users in it."""
    home = data.with_suffix(".home")
    home.mkdir()
    data.rename(home / "data")
    again = EmbeddedPostgres(home, {"fsync": "off"})
    shutil.copy(site.postgres.directory / "password", home)
    again.start()
    try:
        with psycopg.connect(again.dsn) as connection:
            return {name for (name,) in connection.execute("SELECT username FROM users.users")}
    finally:
        again.stop("immediate")


def test_one_domain_is_brought_back_below_the_serving_processes(site: Site) -> None:
    users = site.serving.users()
    ann = users.CreateUser(user("ann")).user
    assert users.GetUser(pb.GetUserRequest(id=ann.id)).user.username == "ann"
    moment = datetime.now(UTC)
    users.UpdateUser(pb.UpdateUserRequest(user=pb.User(id=ann.id, username="changed")))
    # Now in the copies of the process.
    assert users.GetUser(pb.GetUserRequest(id=ann.id)).user.username == "changed"
    site.archived(datetime.now(UTC))
    [line] = commands("**One domain is broken")
    printed = site.run(re.sub(r"--time \S+", f"--time {moment.isoformat()}", line))
    assert "rows are back" in printed
    assert users.GetUser(pb.GetUserRequest(id=ann.id)).user.username == "ann"
    # Leases and all that goes on beside calls work again.
    users.CreateUser(user("after"))


def test_wal_for_a_restore_command_of_your_own(site: Site, tmp_path: Path) -> None:
    begin = PAGE.read_text(encoding="utf-8").index("kronos-db backup fetch-wal %f %p")
    assert begin
    # Of a segment that is being written there are only parts.
    site.archived(datetime.now(UTC))
    archived = oldest_segment(site)
    line = f"kronos-db backup fetch-wal {archived} {tmp_path}/segment"
    site.run(line)
    assert (tmp_path / "segment").stat().st_size == 16 << 20
    site.run(f"kronos-db backup fetch-wal 00000001000000FF000000FF {tmp_path}/none", code=1)


def oldest_segment(site: Site) -> str:
    first = site.listed()["archive"]["first_lsn"]
    with psycopg.connect(site.postgres.dsn) as connection:
        [(name,)] = connection.execute("SELECT pg_walfile_name(%s)", [first]).fetchall()
    return str(name)


def test_what_is_wrong_is_said_in_one_sentence(site: Site, tmp_path: Path) -> None:
    for line in (
        "kronos-db backup restore",
        f"kronos-db backup restore --into {tmp_path}/x --instance y",
        f"kronos-db backup restore --into {tmp_path}/x --lsn nonsense",
        f"kronos-db backup restore --into {tmp_path}/x --lsn 0/1 --backup y",
    ):
        site.run(line, code=2)
    site.run("kronos-db backup delete nothing", code=1)
    site.run(f"kronos-db backup restore --into {tmp_path}/x --time 2001-01-01T00:00:00Z", code=1)
    assert not (tmp_path / "x").exists()
