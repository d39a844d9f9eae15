"""The plans of the queries of routes on many rows: an index each, and no look at a whole table for few of its rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.routes.store import QUERIES
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.identifiers import uuid7
from tests.parts.domain import new_database, opened, settings_of

FILL = """
INSERT INTO routes.routes (id, name, spec, shape, headers, table_version, create_time, update_time)
SELECT md5(n::text)::uuid, 'r' || lpad(n::text, 6, '0'),
    jsonb_build_object('path', '/p' || n, 'upstream', 'u', 'quotas', jsonb_build_array('q' || n % 500)),
    '/0p' || n, '', n, now(), now()
FROM generate_series(1, 20000) AS n;
INSERT INTO routes.usage (key, slot, value, expire_time)
SELECT md5(n::text)::uuid, n % 3, n, now() + n * interval '1 s' FROM generate_series(1, 100000) AS n;
INSERT INTO routes.allowed (id, print, expire_time)
SELECT md5(n::text)::uuid, md5(n::text)::uuid, now() + n * interval '1 s' FROM generate_series(1, 100000) AS n;
INSERT INTO routes.removed (id, kind, table_version, remove_time)
SELECT md5(n::text)::uuid, 'route', n, now() - n * interval '1 s' FROM generate_series(1, 20000) AS n;
UPDATE routes.route_table SET version = 20000;
"""
TABLES = ("routes", "usage", "allowed", "removed", "quotas", "lease_held")


@pytest.fixture(scope="module")
def many(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection[Any]]:
    with (
        new_database(postgres) as dsn,
        opened(settings_of(tmp_path_factory.mktemp("plans"), dsn), "routes"),
        psycopg.connect(dsn, autocommit=True) as connection,
    ):
        connection.execute(FILL, prepare=False)
        for table in TABLES:
            connection.execute(f"VACUUM (ANALYZE) routes.{table}")
        yield connection


def plan(connection: psycopg.Connection[Any], name: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the nodes of the plan of a query."""
    text = f"EXPLAIN (FORMAT JSON) {load_queries(QUERIES, 'routes')[name].text}"
    found = connection.execute(text, params, prepare=False, binary=True).fetchone()
    assert found is not None
    nodes = [(found[0] if not isinstance(found[0], str) else json.loads(found[0]))[0]["Plan"]]
    for node in nodes:
        nodes += node.get("Plans", [])
    return nodes


RIVAL = {"shape": "/0p77", "headers": "", "spec": Jsonb({"path": "/p77"}), "id": uuid7()}
PAGE = {"after": "r010000", "name_prefix": "", "host": None, "quota": None, "limit": 50}


@pytest.mark.parametrize(
    ("query", "params", "index"),
    [
        ("get_route_by_id", {"key": uuid7()}, "routes_pkey"),
        ("get_route_by_name", {"key": "r000007"}, "routes_name"),
        ("list_routes", PAGE, "routes_name"),
        ("list_routes", {**PAGE, "quota": "q7"}, "routes_quotas"),
        ("find_rival", RIVAL, "routes_match"),
        ("find_user_of_quota", {"name": "q7"}, "routes_quotas"),
        ("table_since", {"since": 19990}, "routes_table_version"),
        ("table_since", {"since": 19990}, "removed_pkey"),
        ("reset", {"key": uuid7()}, "usage_pkey"),
        ("purge_usage", {}, "usage_expire_time"),
        ("purge_allowed", {}, "allowed_expire_time"),
    ],
)
def test_an_index_is_used(many: psycopg.Connection[Any], query: str, params: dict[str, Any], index: str) -> None:
    nodes = plan(many, query, params)
    assert index in [node.get("Index Name") for node in nodes]
    large = {"routes", "usage", "allowed", "removed"}
    assert [node for node in nodes if node["Node Type"] == "Seq Scan" and node["Relation Name"] in large] == []
