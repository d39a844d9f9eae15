"""An index that only a standby uses is in use: a real primary with a real standby."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from kronos_db.admin.advice import Kind, Limits
from kronos_db.admin.advice_existing import advise_existing
from kronos_db.admin.index_store import facts_of
from kronos_db.admin.statement_store import Sources
from kronos_db.embedded.postgres import EmbeddedPostgres
from tests.parts.domain import LIMIT
from tests.parts.eventually import eventually

LIMITS = Limits(observed=timedelta(0), unused_size=0)
_READ = "SELECT count(*) FROM shop.orders WHERE total = 7"


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path_factory.mktemp("primary"), {"fsync": "off"})
    server.start()
    with psycopg.connect(server.dsn_for("kronos"), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA shop")
        connection.execute("CREATE TABLE shop.orders AS SELECT n AS id, n AS total FROM generate_series(1, 20000) AS n")
        connection.execute("CREATE INDEX orders_total ON shop.orders (total)")
        connection.execute("VACUUM ANALYZE shop.orders")
    yield server
    server.stop("immediate")


@pytest.fixture(scope="module")
def standby(primary: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    folder = tmp_path_factory.mktemp("standby")
    parts = conninfo_to_dict(primary.dsn)
    command = [primary.bin_dir / "pg_basebackup", "-D", folder / "data", "-R", "-X", "stream", "-c", "fast"]
    command += ["-h", str(parts["host"]), "-U", str(parts["user"])]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PGPASSWORD": str(parts["password"])})
    shutil.copy(primary.directory / "password", folder / "password")
    server = EmbeddedPostgres(folder, {"fsync": "off"})
    server.start()
    yield server
    server.stop("immediate")


def unused(primary: EmbeddedPostgres, *replicas: str) -> list[str]:
    sources = Sources({"shop": primary.dsn_for("kronos")}, {"shop": replicas})
    with sources.connected("shop") as direct, sources.replicas("shop") as standbys:
        facts = facts_of(direct, "shop", (), standbys)
    return [each.index for each in advise_existing(facts, LIMITS) if each.kind is Kind.UNUSED]


def test_what_a_standby_uses_is_in_use(
    primary: EmbeddedPostgres, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    assert unused(primary) == ["orders_total"]
    standby: EmbeddedPostgres = request.getfixturevalue("standby")
    with psycopg.connect(primary.dsn) as connection:
        eventually(lambda: connection.execute("SELECT count(*) FROM pg_stat_replication").fetchone() == (1,), LIMIT)
    # Nobody knows what it reads.
    assert unused(primary) == []
    there = standby.dsn_for("kronos")
    assert unused(primary, there) == ["orders_total"]
    # One that is away says nothing.
    assert unused(primary, there.replace("run", "away")) == []
    with psycopg.connect(there, autocommit=True) as connection:
        connection.execute("SET enable_seqscan = off")
        connection.execute(_READ)
        connection.execute("SELECT pg_stat_force_next_flush()")
    eventually(lambda: unused(primary, there) == [], LIMIT)
