"""Migrated databases of the tests, opened as the server opens them: straight or through a pgBouncer."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kronos_db import schemas
from kronos_db.config import Settings
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.idempotency import Mutation
from tests.parts.pgbouncer import PgBouncer
from tests.parts.serving import make_secrets

LIMIT = 20.0  # seconds that a test waits for anything
# Straight, and through which pgBouncer, with prepared statements or without.
WAYS = {"direct": None, "pgbouncer_118": False, "pgbouncer_124": True}


@contextmanager
def new_database(postgres: EmbeddedPostgres, template: str = "template1") -> Iterator[str]:
    """Yield the superuser's DSN of a copy of `template`, an empty database; it is dropped afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        # By files: page by page through the WAL takes three times as long.
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        try:
            yield postgres.dsn_for(name)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def settings_of(folder: Path, dsn: str, way: PgBouncer | None = None, **changes: Any) -> Settings:
    """Return settings to serve the superuser's `dsn`, through the pgBouncer `way` when there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    through = dsn
    if way is not None:
        parts = conninfo_to_dict(dsn)
        through = way.dsn(str(parts["user"]), str(parts["password"]), str(parts["dbname"]))
    secrets = make_secrets(folder, {})
    return Settings.model_validate({"postgres_dsn": through, "postgres_direct_dsn": dsn, **secrets, **changes})


def settings_by(name: str, request: pytest.FixtureRequest, folder: Path, dsn: str, **changes: Any) -> Settings:
    """Return settings to serve `dsn` by one of WAYS."""
    prepared = WAYS[name]
    way = None if prepared is None else request.getfixturevalue(name)
    return settings_of(folder, dsn, way, prepared_statements=prepared is not False, **changes)


def redirected(dsn: str, address: tuple[str, int]) -> str:
    """Return `dsn` with the server taken for the one at `address`."""
    host, port = address
    return make_conninfo(dsn, host=host, port=port, sslmode="disable", gssencmode="disable")


@contextmanager
def opened(settings: Settings, domain: str = "users") -> Iterator[Database]:
    """Migrate, and yield the database of `domain` through the pool of its role."""
    schemas.migrate(settings, lambda _domain, _name: None)
    database = schemas.open_database(settings, domain)
    try:
        yield database
    finally:
        database.pool.close()


def unnamed(**changes: Any) -> Mutation[Any, Any]:
    """Return the mutation of a call without `request_id`; nothing may ask for its stored form."""

    def refuse(_: Any) -> Any:
        raise AssertionError("nobody can ask for this answer again")

    return mutation(encode=refuse, decode=refuse, **changes)._replace(request_id=None)


def mutation(request_id: uuid.UUID | None = None, **changes: Any) -> Mutation[Any, Any]:
    """Return a mutation whose reply is the write's own result."""
    return Mutation(
        **{
            "caller": "test",
            "request_id": request_id or uuid.uuid4(),
            "fingerprint": b"one body",
            "reply": lambda result: result,
            "encode": pickle.dumps,
            "decode": pickle.loads,
            "window": 3600.0,
            **changes,
        }
    )
