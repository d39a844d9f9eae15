"""What operators ask for is let through and runs: TPC-H, and what else an analysis is made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from kronos_db import schemas
from kronos_db.admin.query_store import QueryStore
from kronos_db.admin.querying import Querying, Question
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.pool import Pool, PoolLimits
from kronos_db.runtime.database.reading_role import READER, Part, Readable, ReadingRole
from tests.admin.layers import LIMITS
from tests.parts.domain import new_database, settings_of

_FOLDER = Path(__file__).parent / "useful"


def _statements(name: str) -> list[str]:
    return [each.strip() for each in (_FOLDER / name).read_text().split("\n-- ") if each.strip()]


TPCH = _statements("tpch.sql")
ANALYSIS = _statements("analysis.sql")


@pytest.fixture(scope="module")
def querying(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Querying]:
    with new_database(postgres) as dsn:
        # The role is that of all servers of the tests, with its password.
        password = schemas._derived_password(settings_of(tmp_path_factory.mktemp("useful"), dsn), READER)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute((_FOLDER / "tpch_schema.sql").read_bytes())
            ReadingRole(dsn, password, 30).apply([Part("tpch", "kronos", Readable("", {}, {}))])
            connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA tpch TO {READER}".encode())
            tables = connection.execute(
                "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'tpch'::regnamespace"
            )
            relations = frozenset(str(row[0]) for row in tables)
        pool = Pool("query", make_conninfo(dsn, user=READER, password=password), PoolLimits(2, 8, 5.0, False, 20.0, 0))
        yield Querying(QueryStore({"": pool}), {"": relations}, LIMITS)
        pool.close()


def test_all_22_are_there() -> None:
    assert [int(each.removeprefix("-- ").partition(":")[0]) for each in TPCH] == list(range(1, 23))


@pytest.mark.parametrize("text", [*TPCH, *ANALYSIS], ids=lambda text: text.removeprefix("-- ").partition("\n")[0])
def test_it_runs(text: str, querying: Querying) -> None:
    text = text if text.startswith("--") else f"-- {text}"
    with querying.run(Question(text)) as result:
        rows = list(result.rows())
    assert rows
    assert result.columns
    assert not result.cut
