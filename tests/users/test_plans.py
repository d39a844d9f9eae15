"""The plans of the users' queries on many rows: an index each, and no sort of the whole table for a late page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
import pytest

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.queries import load_queries
from kronos_db.runtime.identifiers import uuid7
from kronos_db.users.store import QUERIES
from tests.parts.domain import new_database, opened, settings_of

ROWS = 100_000
PAGE = 50
# Every thousandth is suspended, every thousandth deleted; ten are created at each instant.
FILL = f"""
INSERT INTO users.users (id, username, username_key, email, phone, display_name, attributes, state, create_time,
    update_time, delete_time)
SELECT md5(n::text)::uuid, 'user' || n, 'user' || lpad(n::text, 6, '0'), 'k1.box.mail' || n, 'k1.box.phone' || n,
    'User', '{{}}', CASE WHEN n % 1000 = 0 THEN 2 ELSE 1 END, at, at, CASE WHEN n % 1000 = 1 THEN at END
FROM generate_series(1, {ROWS}) AS n, LATERAL (SELECT timestamptz '2026-01-01 UTC' + n / 10 * interval '1 s') AS t (at)
"""


@pytest.fixture(scope="module")
def many_users(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plans]:
    folder = tmp_path_factory.mktemp("plans")
    with (
        new_database(postgres) as dsn,
        opened(settings_of(folder, dsn)),
        psycopg.connect(dsn, autocommit=True) as connection,
    ):
        connection.execute(FILL)
        connection.execute("VACUUM (ANALYZE) users.users")
        yield Plans(connection)


class Plans:
    """Explains queries with their parameters, planned as an unnamed statement."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self._queries = load_queries(QUERIES, "users")

    def of(self, name: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the nodes of the plan as it ran, outermost first."""
        text = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {self._queries[name].text}"
        found = self.connection.execute(text, params, prepare=False, binary=True).fetchone()
        assert found is not None
        plan = found[0] if not isinstance(found[0], str) else json.loads(found[0])
        nodes = [plan[0]["Plan"]]
        for node in nodes:
            nodes += node.get("Plans", [])
        return nodes

    def key_of_row(self, number: int) -> tuple[Any, ...]:
        found = self.connection.execute(
            "SELECT create_time, id, username_key FROM users.users ORDER BY create_time, id OFFSET %s LIMIT 1", [number]
        ).fetchone()
        assert found is not None
        return found


NO_FILTER = {
    "state": None,
    "deleted": None,
    "create_time_from": None,
    "create_time_until": None,
    "username_prefix": None,
    "limit": PAGE,
}
ORDERS = ["list_oldest_first", "list_newest_first", "list_username_ascending", "list_username_descending"]


def after(plans: Plans, order: str, row: int) -> dict[str, Any]:
    time, key, username = plans.key_of_row(row)
    return (
        {"after_username": username} if "username" in order else {"after_time": time.isoformat(), "after_id": str(key)}
    )


def nothing_before(order: str) -> dict[str, Any]:
    return {"after_username": None} if "username" in order else {"after_time": None, "after_id": None}


def blocks(nodes: list[dict[str, Any]]) -> int:
    return int(nodes[0]["Shared Hit Blocks"]) + int(nodes[0]["Shared Read Blocks"])


@pytest.mark.parametrize("order", ORDERS)
def test_page_1000_costs_what_page_1_costs(many_users: Plans, order: str) -> None:
    first = many_users.of(order, {**NO_FILTER, "deleted": False, **nothing_before(order)})
    late = many_users.of(order, {**NO_FILTER, "deleted": False, **after(many_users, order, 999 * PAGE)})
    for nodes in (first, late):
        assert [node["Node Type"] for node in nodes if "Sort" in node["Node Type"] or "Seq" in node["Node Type"]] == []
        assert nodes[-1]["Node Type"] == "Index Scan"
        assert nodes[0]["Actual Rows"] == PAGE
    assert "Index Cond" in late[-1], "it begins at the key and does not walk to it"
    assert blocks(late) <= blocks(first) + 10


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({"state": 2, "deleted": False}, "users_suspended"),
        ({"deleted": True}, "users_deleted"),
        (
            {"create_time_from": "2026-01-01T02:00:00Z", "create_time_until": "2026-01-01T02:00:10Z"},
            "users_create_time",
        ),
    ],
)
@pytest.mark.parametrize("order", ORDERS[:2])
def test_filters_by_time_and_state_use_an_index(
    many_users: Plans, order: str, filters: dict[str, Any], index: str
) -> None:
    nodes = many_users.of(order, {**NO_FILTER, **filters, **nothing_before(order)})
    assert nodes[-1]["Index Name"] == index
    assert blocks(nodes) < 400


@pytest.mark.parametrize("order", ORDERS[2:])
def test_the_username_prefix_uses_an_index(many_users: Plans, order: str) -> None:
    params = {**NO_FILTER, "username_prefix": "user0500", **nothing_before(order)}
    nodes = many_users.of(order, params)
    assert nodes[-1]["Index Name"] == "users_username"
    assert "Index Cond" in nodes[-1]
    assert blocks(nodes) < 400


@pytest.mark.parametrize(
    ("query", "params", "index"),
    [
        ("get_by_id", {"keys": [uuid7()]}, "users_pkey"),
        ("get_by_id", {"keys": [uuid7() for _ in range(100)]}, "users_pkey"),
        ("get_by_username", {"keys": ["user000500"]}, "users_username"),
        ("get_by_email", {"keys": ["mail500"]}, "users_email"),
        ("credential_by_id", {"key": uuid7()}, "users_pkey"),
        ("credential_by_username", {"key": "user000500"}, "users_username"),
        ("credential_by_email", {"key": "mail500"}, "users_email"),
        ("erase", {"id": uuid7(), "version": None}, "users_pkey"),
        ("touch", {"id": uuid7(), "version": 3}, "users_pkey"),
    ],
)
def test_look_ups_use_an_index(many_users: Plans, query: str, params: dict[str, Any], index: str) -> None:
    nodes = many_users.of(query, params)
    assert index in [node.get("Index Name") for node in nodes]
    assert [node for node in nodes if node["Node Type"] == "Seq Scan" and node["Relation Name"] == "users"] == []


def test_the_search_for_the_conflicting_item_uses_indexes(many_users: Plans) -> None:
    ids = [uuid7() for _ in range(20)]
    names = [f"new{number}" for number in range(20)]
    params = {"ids": ids, "username_keys": names, "emails": names, "phones": names, "created": ids[:10]}
    nodes = many_users.of("find_conflict", params)
    assert [node for node in nodes if node["Node Type"] == "Seq Scan"] == []
