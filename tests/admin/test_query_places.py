"""Where statements run: the common database or its replica, and that of a domain which has its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from kronos_db import schemas
from kronos_db.admin.query_model import StatementRefusedError
from kronos_db.admin.query_store import QueryStore
from kronos_db.admin.querying import Querying, Question
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.dsn import as_role
from tests.admin.layers import LIMITS
from tests.parts.domain import new_database, settings_of


def test_a_domain_with_its_own_postgresql_is_asked_there(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    with new_database(postgres) as common, new_database(postgres) as own:
        users = as_role(own, "test_users_of_its_own", "secret")
        settings = settings_of(tmp_path, common, users_dsn=users, users_direct_dsn=own)
        schemas.migrate(settings, lambda _domain, _name: None)
        places = schemas.open_reading(settings)
        store = QueryStore({name: place.pool for name, place in places.items()})
        querying = Querying(store, {name: place.relations for name, place in places.items()}, LIMITS)

        def database(domain: str, relation: str) -> str | None:
            with querying.run(Question(f"SELECT current_database(), count(*) FROM {relation}", domain)) as result:
                return next(iter(list(result.rows())))[0]

        try:
            assert database("users", "users.users") == conninfo_to_dict(own)["dbname"]
            assert database("", "logs.record") == conninfo_to_dict(common)["dbname"]
            assert database("logs", "tokens.token") == conninfo_to_dict(common)["dbname"]
            with pytest.raises(StatementRefusedError):
                database("", "users.users")
            with pytest.raises(StatementRefusedError):
                database("users", "logs.record")
        finally:
            store.close()


def test_a_replica_is_asked_in_place_of_the_common_database(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        "postgresql://a:b@primary/kronos",
        query_dsn="postgresql://replica,other/kronos?target_session_attrs=any",
    )
    places = schemas.open_reading(settings)
    try:
        found = conninfo_to_dict(places[""].pool._pool.conninfo)
        assert (found["host"], found["user"]) == ("replica,other", "kronos_query")
        assert places["users"] is places[""]
        primary = places[""].primary
        assert primary is not None
        assert conninfo_to_dict(primary._pool.conninfo)["host"] == "primary"
        primary.close()
    finally:
        places[""].pool.close()


def test_without_a_role_secret_there_is_no_place(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "postgresql://a:b@primary/kronos").model_copy(
        update={"postgres_role_secret_file": None}
    )
    assert schemas.open_reading(settings) == {}
