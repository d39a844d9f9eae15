"""EmbeddedPostgres: first start, restart, and coming back after every kind of death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from kronos_db.embedded import processes
from kronos_db.embedded.errors import EmbeddedError
from kronos_db.embedded.postgres import EmbeddedPostgres
from tests.parts.orphans import leave_running

LIMIT = 30.0
Make = Callable[..., EmbeddedPostgres]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes servers that are stopped in the end, on `tmp_path/pg` unless told."""
    made: list[EmbeddedPostgres] = []

    def server(directory: Path = tmp_path / "pg", **settings: str) -> EmbeddedPostgres:
        made.append(EmbeddedPostgres(directory, {"fsync": "off", **settings}))
        return made[-1]

    yield server
    for each in made:
        each.stop("immediate")


def shown(server: EmbeddedPostgres, setting: str) -> str:
    with psycopg.connect(server.dsn) as connection:
        row = connection.execute("SELECT current_setting(%s)", [setting]).fetchone()
    assert row is not None
    return str(row[0])


def keep(server: EmbeddedPostgres, text: str) -> None:
    with psycopg.connect(server.dsn) as connection:
        connection.execute("CREATE TABLE kept (text text)")
        connection.execute("INSERT INTO kept VALUES (%s)", [text])


def kept(server: EmbeddedPostgres) -> str:
    with psycopg.connect(server.dsn) as connection:
        row = connection.execute("SELECT text FROM kept").fetchone()
    assert row is not None
    return str(row[0])


def kill(server: EmbeddedPostgres) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    assert processes.wait_until(lambda: not server.running, LIMIT)


def test_first_start_is_set_up_and_a_restart_keeps_data(make: Make) -> None:
    server = make(work_mem="5MB")
    server.start()
    assert server.pid is not None
    assert os.getsid(server.pid) == server.pid, "Ctrl-C in the terminal must not reach it"
    expected = {
        "data_checksums": "on",
        "listen_addresses": "",
        "password_encryption": "scram-sha-256",
        "summarize_wal": "on",
        "server_encoding": "UTF8",
        "shared_preload_libraries": "pg_stat_statements",
        "wal_level": "replica",
        "work_mem": "5MB",
    }
    assert {name: shown(server, name) for name in expected} == expected
    assert (server.directory / "password").stat().st_mode & 0o777 == 0o600
    keep(server, "äß€")
    server.start()
    server.stop()
    assert not server.running
    assert not (server.directory / "run").exists()
    server.start()
    assert kept(server) == "äß€"


def test_only_the_password_lets_in(make: Make) -> None:
    server = make()
    server.start()
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(server.dsn, password="another")


def test_a_password_that_is_not_the_clusters_is_told(make: Make) -> None:
    server = make()
    server.start()
    server.stop()
    (server.directory / "password").write_text("another")
    with pytest.raises(EmbeddedError, match=r"does not serve its superuser: .*password authentication failed"):
        server.start()
    assert not server.running
    (server.directory / "password").unlink()
    with pytest.raises(EmbeddedError, match=r"password.* is gone"):
        server.start()
    assert server.pid is None


def test_no_value_of_a_statement_reaches_the_log_or_the_statistics(make: Make) -> None:
    server = make()
    server.start()
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION pg_stat_statements")
        connection.execute("CREATE TABLE once (text text PRIMARY KEY)")
        connection.execute("INSERT INTO once VALUES ('marker')")
        for statement in (
            "INSERT INTO once VALUES ('marker')",
            "SELECT 'marker'::int",
            "SELECT marker",
            "DO $$ BEGIN RAISE WARNING 'marker'; END $$",
        ):
            try:
                connection.execute(statement)
            except psycopg.Error:
                continue
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT %s::int", ["marker"])
        connection.execute("CREATE ROLE someone PASSWORD 'marker'")
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT pg_terminate_backend(pg_backend_pid()), 'marker'")
    with psycopg.connect(server.dsn) as connection:
        assert (
            connection.execute("SELECT query FROM pg_stat_statements WHERE query LIKE '%''marker''%'").fetchall() == []
        )
    server.stop()
    log = server.log_file.read_text()
    assert "terminating connection" in log
    assert "marker" not in log


def test_start_after_the_postmaster_was_killed(make: Make) -> None:
    server = make()
    server.start()
    keep(server, "acknowledged")
    kill(server)
    server.start()
    assert kept(server) == "acknowledged"


def test_a_pid_file_whose_pid_is_now_another_process_does_not_stop_the_start(make: Make) -> None:
    server = make()
    server.start()
    pid_file = server.data / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    server.stop()
    # PostgreSQL itself lets the pids of its parent and grandparent pass.
    with subprocess.Popen(["/bin/sleep", "60"]) as another:
        pid_file.write_text("\n".join([str(another.pid), *lines[1:]]) + "\n")
        server.start()
        another.kill()
    assert server.running


def test_a_server_that_outlived_its_parent_is_replaced(make: Make, tmp_path: Path) -> None:
    pid = leave_running("kronos_db.embedded.postgres", "EmbeddedPostgres", tmp_path / "pg")
    assert "postgres" in processes.command_line(pid)
    server = make()
    server.start()
    assert not processes.command_line(pid)
    assert "received fast shutdown request" in server.log_file.read_text()


def test_backends_that_outlived_a_killed_postmaster_are_ended(make: Make) -> None:
    server = make()
    server.start()
    # Not as a context manager: that would send a COMMIT.
    with closing(psycopg.connect(server.dsn, autocommit=True)) as connection:
        backend = connection.info.backend_pid
        busy = "DO $$ BEGIN LOOP END LOOP; END $$"
        connection.pgconn.send_query(busy.encode())
        with psycopg.connect(server.dsn, autocommit=True) as watcher:
            active = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
            assert processes.wait_until(lambda: watcher.execute(active, [backend]).fetchone(), LIMIT)
        kill(server)
        server.start()
        assert not processes.command_line(backend)
    assert shown(server, "port") == "5432"


def test_initdb_killed_half_way_begins_anew(make: Make, tmp_path: Path) -> None:
    directory = tmp_path / "pg"
    program = (
        "from pathlib import Path; from kronos_db.embedded.postgres import EmbeddedPostgres; "
        f"EmbeddedPostgres(Path({str(directory)!r})).start()"
    )
    with subprocess.Popen([sys.executable, "-c", program], start_new_session=True) as first:
        assert processes.wait_until(lambda: list(directory.glob("data.new-*/PG_VERSION")), LIMIT)
        first.kill()
    assert not (directory / "data").exists()
    server = make()
    server.start()
    assert shown(server, "data_checksums") == "on"


def test_a_deep_directory_has_its_socket_elsewhere_and_cleans_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The system's temporary directory may itself be deep: /tmp is tried next.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = make(tmp_path / ("deep" * 20) / ("deeper" * 20))
    server.start()
    place = server.directory / "run"
    socket = place.resolve()
    assert place.is_symlink()
    assert socket.stat().st_mode & 0o777 == 0o700
    assert shown(server, "port") == "5432"
    kill(server)
    server.start()
    assert not socket.exists(), "what the killed one left is cleaned by the next start"
    socket = place.resolve()
    server.stop()
    assert not socket.exists()
    assert not place.is_symlink()


def test_what_keeps_it_from_starting_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make(shared_buffers="lots")
    with pytest.raises(EmbeddedError, match=r"did not start: .*configuration file .*kronos.conf.* errors"):
        server.start()
    assert not server.running
    with pytest.raises(EmbeddedError, match="does not run"):
        server.dsn_for("kronos")
    with pytest.raises(EmbeddedError, match="cannot be a PostgreSQL setting"):
        make(**{"work mem": "1MB"}).start()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedError, match="not installed"):
        _ = server.bin_dir
