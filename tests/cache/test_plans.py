"""The plans of the cache's queries on many rows: an index each, and a late page for the price of the first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
import pytest

from kronos_db.cache.indexing import END, just_after
from kronos_db.cache.store import QUERIES
from kronos_db.cache.upkeep import QUERIES as UPKEEP
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.queries import load_queries
from tests.parts.domain import new_database, opened, settings_of

ROWS = 100_000
PAGE = 50
NAMESPACE = "01a207c9-538b-72bb-b4c6-24200d69a6a3"
# A hundred entries of each owner, in both parts.
FILL = f"""
INSERT INTO cache.entry (durable, namespace_id, key, version, base, fresh_until, stale_until, update_time, used_time,
    size, grown, appeared, tags, indexed, value)
SELECT durable, '{NAMESPACE}', 'key' || lpad(n::text, 6, '0'), n, n, 'infinity', 'infinity', now(), now(), 200, 0, 0,
    CASE WHEN n % 10 = 0 THEN ARRAY['tag' || n % 100] ELSE '{{}}' END, ARRAY['owner' || lpad((n % 1000)::text, 4, '0')],
    'value'
FROM generate_series(1, {ROWS}) AS n, unnest(ARRAY[true, false]) AS part (durable);
INSERT INTO cache.entry_index SELECT durable, namespace_id, 1, indexed[1], key FROM cache.entry;
"""


@pytest.fixture(scope="module")
def plans(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plans]:
    folder = tmp_path_factory.mktemp("plans")
    with (
        new_database(postgres) as dsn,
        opened(settings_of(folder, dsn), "cache"),
        psycopg.connect(dsn, autocommit=True) as connection,
    ):
        connection.execute(FILL)
        connection.execute("VACUUM (ANALYZE) cache.entry, cache.entry_index")
        yield Plans(connection)


class Plans:
    """Explains queries with their parameters: as an unnamed statement, or with a plan that fits all parameters."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._queries = {**load_queries(QUERIES, "cache"), **load_queries(UPKEEP, "cache")}

    def of(self, name: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the nodes of the plan as it ran, outermost first; nothing stays changed."""
        text = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {self._queries[name].text}"
        with self._connection.transaction(force_rollback=True):
            found = self._connection.execute(text, params, prepare=False, binary=True).fetchone()
        assert found is not None
        plan = found[0] if not isinstance(found[0], str) else json.loads(found[0])
        nodes = [plan[0]["Plan"]]
        for node in nodes:
            nodes += node.get("Plans", [])
        return nodes


def _blocks(nodes: list[dict[str, Any]]) -> int:
    return int(nodes[0]["Shared Hit Blocks"]) + int(nodes[0]["Shared Read Blocks"])


def _scanned(nodes: list[dict[str, Any]]) -> list[str]:
    return [node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan" and node["Actual Loops"]]


QUERY = {
    "durable": True,
    "namespace_id": NAMESPACE,
    "number": 1,
    "limit": PAGE,
}


@pytest.mark.parametrize("order", ["query_ascending", "query_descending"])
@pytest.mark.parametrize(
    "condition",
    [
        ("", END),
        ("owner0500", just_after("owner0500")),
        ("owner0500", "owner0510"),
        ("owner05", "owner06"),
        ("owner0990", END),
    ],
    ids=["all", "equality", "range", "prefix", "open range"],
)
def test_a_page_reads_what_it_shows(plans: Plans, order: str, condition: tuple[str, str]) -> None:
    low, high = condition
    first = {"after_value": low if order == "query_ascending" else high, "after_key": ""}
    _assert_cheap(plans.of(order, {**QUERY, "low": low, "high": high, **first}))


@pytest.mark.parametrize("order", ["query_ascending", "query_descending"])
def test_a_late_page_costs_what_the_first_does(plans: Plans, order: str) -> None:
    late = {"after_value": "owner0500", "after_key": "key050500"}
    _assert_cheap(plans.of(order, {**QUERY, "low": "", "high": END, **late}))


def _assert_cheap(nodes: list[dict[str, Any]]) -> None:

    assert nodes[0]["Actual Rows"] == PAGE
    assert [node["Node Type"] for node in nodes if "Sort" in node["Node Type"]] == []
    assert _scanned(nodes) == []
    # Three levels of the index of entries and a row for each.
    assert _blocks(nodes) < 10 * PAGE


KEYS = "\x1f".join(f"key{number:06}" for number in range(0, 100_000, 1000))
COUNT = 100
IDS = f"{{{','.join([NAMESPACE] * COUNT)}}}"


def _numbers(value: object) -> str:
    return f"{{{','.join([str(value)] * COUNT)}}}"


NEW = {
    "durable": True,
    "namespace_id": NAMESPACE,
    "keys": KEYS,
    "values": b"x" * COUNT,
    "starts": f"{{{','.join(map(str, range(1, COUNT + 1)))}}}",
    "sizes": _numbers(1),
    "tags": None,
    "ttls": _numbers(5.0),
    "stales": _numbers(0.0),
    "expected": None,
    "indexed": None,
    "lease_ids": IDS,
    "lease_bases": _numbers(1),
}


@pytest.mark.parametrize("durable", [True, False], ids=["durable", "memory"])
@pytest.mark.parametrize(
    ("query", "params"),
    [
        ("get", {"namespace_ids": IDS, "keys": KEYS}),
        ("put", NEW),
        ("put_checked", {**NEW, "indexed": ["{owner0001}"] * COUNT}),
        ("fill", NEW),
        ("delete", {"namespace_id": NAMESPACE, "keys": KEYS, "expected": [None] * COUNT}),
        ("touch", {"namespace_id": NAMESPACE, "keys": KEYS, "ttl": 5.0, "stale": 0.0}),
        ("lease", {"namespace_ids": IDS, "keys": KEYS, "lease_ids": IDS, "seconds": _numbers(5.0)}),
        ("abandon", {"namespace_id": NAMESPACE, "keys": KEYS, "lease_ids": IDS, "lease_bases": _numbers(1)}),
        ("evict", {"namespace_id": NAMESPACE, "after": "key050000", "limit": 500, "most": 100}),
        ("sweep", {"namespace_id": NAMESPACE, "after": "key050000", "limit": 500}),
        ("sweep_index", {"namespace_id": NAMESPACE, "number": 1, "value": "owner05", "key": "", "limit": 500}),
        ("orphans", {}),
        ("remove_orphans", {"namespace_id": "01a207c9-538b-72bb-b4c6-24200d69a6a4", "limit": 500}),
    ],
)
def test_rows_are_found_by_their_keys(plans: Plans, query: str, params: dict[str, Any], durable: bool) -> None:
    nodes = plans.of(query, {**params, "durable": durable})

    assert [name for name in _scanned(nodes) if name.startswith("entry")] == []
    assert _blocks(nodes) < 20_000
