"""The plans of checks, and of listings of grants and holders, on many rows: an index each, no walk to a late page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.queries import load_queries
from kronos_db.users import access_store, grant_store
from tests.parts.domain import new_database, opened, settings_of

USERS = 20_000
PAGE = 50
# Lines of roles ten deep; each user has five grants, of the lowest role of one line in a scope of all, and of others.
FILL = f"""
INSERT INTO users.users (id, username, username_key, display_name, attributes, state, create_time, update_time)
SELECT md5(n::text)::uuid, 'user' || n, 'user' || n, '', '{{}}', 1, now(), now() FROM generate_series(1, {USERS}) AS n;
INSERT INTO users.roles (id, name, name_key, description, permissions, create_time, update_time)
SELECT md5('role' || n)::uuid, 'role' || n, 'role' || n, '', ARRAY['doc' || n || ':read'], now(), now()
FROM generate_series(1, 1000) AS n ORDER BY n;
INSERT INTO users.role_parents SELECT n, n - 1 FROM generate_series(1, 1000) AS n WHERE n % 10 <> 1;
INSERT INTO users.grants (user_id, id, role, scope, expire_time, create_time, update_time)
SELECT md5(n::text)::uuid, uuidv7(), CASE step WHEN 0 THEN 10 ELSE ((n + step * 7) % 100) * 10 + 10 END,
    CASE step WHEN 0 THEN '' ELSE 'tenant/t' || n % 50 || '/' END, CASE WHEN n % 100 = 0 THEN now() + '1 h' END, now(),
    now()
FROM generate_series(1, {USERS}) AS n, generate_series(0, 4) AS step
"""


class Plans:
    """Explains queries with their parameters."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def of(self, file: Path, name: str, params: Mapping[str, Any], *, generic: bool = False) -> list[dict[str, Any]]:
        """Return the nodes of the plan as it ran, outermost first; `generic` is the one that is prepared."""
        text = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {load_queries(file, 'users')[name].text}"
        self.connection.execute(f"SET plan_cache_mode = {'force_generic_plan' if generic else 'auto'}")
        found = self.connection.execute(text, params, prepare=False, binary=True).fetchone()
        assert found is not None
        plan = found[0] if not isinstance(found[0], str) else json.loads(found[0])
        nodes = [plan[0]["Plan"]]
        for node in nodes:
            nodes += node.get("Plans", [])
        return nodes


@pytest.fixture(scope="module")
def plans(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plans]:
    folder = tmp_path_factory.mktemp("access_plans")
    with (
        new_database(postgres) as dsn,
        opened(settings_of(folder, dsn)),
        psycopg.connect(dsn, autocommit=True) as connection,
    ):
        for statement in FILL.split(";"):
            connection.execute(statement)  # type: ignore[arg-type]  # not literal
        connection.execute("VACUUM (ANALYZE) users.users, users.roles, users.role_parents, users.grants")
        yield Plans(connection)


def blocks(nodes: list[dict[str, Any]]) -> int:
    return int(nodes[0]["Shared Hit Blocks"]) + int(nodes[0]["Shared Read Blocks"])


def scanned(nodes: list[dict[str, Any]], table: str) -> set[str]:
    """Return by which indexes of itself a table was read, and "all" when it was read whole."""
    own = [node for node in nodes if node.get("Relation Name") == table and node["Actual Loops"]]
    whole = {"all" for node in own if node["Node Type"] == "Seq Scan"}
    return whole | {
        str(node["Index Name"])
        for node in nodes
        if node.get("Index Name", "").startswith(f"{table}_") and node["Actual Loops"]
    }


def ids(plans: Plans, count: int) -> str:
    rows = plans.connection.execute("SELECT id::text FROM users.users ORDER BY username LIMIT %s", [count])
    return f"{{{','.join(row[0] for row in rows)}}}"


@pytest.mark.parametrize("count", [1, 16, 100])
@pytest.mark.parametrize("generic", [True, False], ids=["prepared", "not prepared"])
def test_what_users_hold_is_read_by_index(plans: Plans, count: int, generic: bool) -> None:
    params = {"user_ids": ids(plans, count), "known": b"\xff" * 126}
    nodes = plans.of(access_store.QUERIES, "holdings", params, generic=generic)

    assert scanned(nodes, "users") == {"users_pkey"}
    assert scanned(nodes, "grants") == {"grants_pkey"}
    assert blocks(nodes) < 12 * count + 30
    assert nodes[0]["Actual Rows"] == count


def test_the_prepared_plan_is_kept(plans: Plans) -> None:
    """Planning anew would cost more than all the rest: the planner must not see how many users are asked for."""
    text = load_queries(access_store.QUERIES, "users")["holdings"].text
    for count in (1, 2, 30, 1, 8, 16, 1, 1, 1, 3, 5):
        params = {"user_ids": ids(plans, count), "known": b"\xff" * count}
        plans.connection.execute("SET plan_cache_mode = auto")
        plans.connection.execute(text, params, prepare=True, binary=True)

    found = plans.connection.execute(
        "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement LIKE '%%users:holdings%%'"
    ).fetchone()
    assert found == (6, 5)


def test_roles_that_are_not_known_come_along(plans: Plans) -> None:
    nodes = plans.of(access_store.QUERIES, "holdings", {"user_ids": ids(plans, 1), "known": b""}, generic=True)
    # The user, and ten roles for each line that it has anything of.
    assert nodes[0]["Actual Rows"] % 10 == 1
    assert nodes[0]["Actual Rows"] > 20


@pytest.mark.parametrize("after", [0, 15_000])
def test_a_late_page_of_holders_costs_what_the_first_does(plans: Plans, after: int) -> None:
    key = plans.connection.execute("SELECT id FROM users.users ORDER BY id OFFSET %s LIMIT 1", [after]).fetchone()
    assert key is not None
    params = {
        "permissions": ["doc1:read"],
        "scopes": ["", "tenant/", "tenant/t1/"],
        "after": str(key[0]) if after else None,
        "limit": PAGE,
    }
    nodes = plans.of(access_store.QUERIES, "holders", params)

    assert nodes[0]["Actual Rows"] == PAGE
    assert scanned(nodes, "grants") == {"grants_once"}
    assert scanned(nodes, "users") <= {"users_pkey"}
    assert blocks(nodes) < 6_000


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({"user": True}, "grants_pkey"),
        ({"role": True}, "grants_role"),
        ({}, "grants_id"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_grants_are_listed_by_index(plans: Plans, filters: dict[str, bool], index: str, late: bool) -> None:
    found = plans.connection.execute(
        """SELECT grants.id::text, user_id::text, roles.id::text FROM users.grants JOIN users.roles ON number = role
        ORDER BY grants.id OFFSET %s LIMIT 1""",
        [50_000 if late else 0],
    ).fetchone()
    assert found is not None
    params = {
        "user_id": found[1] if "user" in filters else None,
        "role_id": found[2] if "role" in filters else None,
        "scope": None,
        "after": found[0] if late else None,
        "limit": PAGE,
    }
    nodes = plans.of(grant_store.QUERIES, "list", params)

    assert scanned(nodes, "grants") == {index}
    assert blocks(nodes) < 600


@pytest.mark.parametrize(
    ("query", "params", "index"),
    [
        ("get", {"id": "01a207c9-538b-72bb-b4c6-24200d69a6a3"}, "grants_id"),
        ("any_expired", {}, "grants_expire_time"),
        ("expire", {"limit": 500}, "grants_expire_time"),
    ],
)
def test_look_ups_of_grants_use_an_index(plans: Plans, query: str, params: dict[str, Any], index: str) -> None:
    nodes = plans.of(grant_store.QUERIES, query, params)
    assert index in {node.get("Index Name") for node in nodes}
    assert blocks(nodes) < 20
