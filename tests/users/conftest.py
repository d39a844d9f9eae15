"""A database of users, and its store straight and through pgBouncers without and with prepared statements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.database import Database
from kronos_db.users.store import UsersStore
from tests.parts.domain import WAYS, new_database, opened, settings_by


@pytest.fixture(scope="module")
def admin_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    with new_database(postgres) as dsn:
        yield dsn


@pytest.fixture(scope="module", params=WAYS)
def users_database(
    request: pytest.FixtureRequest, admin_dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    folder = tmp_path_factory.mktemp(request.param)
    with opened(settings_by(request.param, request, folder, admin_dsn, pool_max_size=3)) as database:
        yield database


@pytest.fixture
def admin(admin_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(admin_dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def store(users_database: Database, admin: psycopg.Connection[Any]) -> UsersStore:
    admin.execute("TRUNCATE users.users, users.grants, users.credentials, users.idempotency")
    return UsersStore(users_database)
