"""The plans of the queries of tokens on many rows: an index each, and no more rows than are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
import pytest

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.queries import load_queries
from kronos_db.tokens.store import QUERIES
from tests.parts.domain import new_database, opened, settings_of

ROWS = 100_000
# Ten tokens for each subject and family, a hundred for each client and device; every hundredth is a revoked JWT.
FILL = f"""
INSERT INTO tokens.token (id, family_id, kind, hash, mark, number, subject_kind, subject, client_id, device_id, scope,
    claims, expire_time, access_seconds, grace_seconds, grant_time, issue_time, seen_time, purge_time, revoke_time,
    jwt_id)
SELECT md5(n::text)::uuid, md5('f' || n / 10)::uuid, CASE WHEN n % 100 = 0 THEN 5 ELSE 1 END,
    CASE WHEN n % 100 <> 0 THEN sha256(n::text::bytea) END, 'mark', n, 2, 'subject' || n / 10, 'client' || n / 100,
    'device' || n / 100, '', '{{}}', now() + n * interval '1 min', 0, 0, at, at, at, now() + n * interval '2 min',
    CASE WHEN n % 100 = 0 THEN at END, CASE WHEN n % 100 = 0 THEN 'jti' || n END
FROM generate_series(1, {ROWS}) AS n, LATERAL (SELECT timestamptz '2026-01-01 UTC' + n * interval '1 s') AS t (at)
"""
CUTOFFS = """
INSERT INTO tokens.cutoff SELECT
    CASE WHEN n % 100 = 0 THEN 'subject:x' ELSE 'family:' END || md5(n::text)::uuid, n, '-infinity', at,
    CASE WHEN n % 10 = 0 OR n % 500 = 1 THEN at ELSE now() + interval '1 day' END, n % 10 <> 0
FROM generate_series(1, 10000) AS n, LATERAL (SELECT now() - n * interval '1 min') AS t (at)
"""


class Plans:
    """Explains queries with their parameters."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._queries = load_queries(QUERIES, "tokens")

    def of(self, name: str, **params: Any) -> list[dict[str, Any]]:
        """Return the nodes of the plan as it ran, outermost first; nothing is changed."""
        text = f"EXPLAIN (ANALYZE, FORMAT JSON) {self._queries[name].text}"
        self._connection.execute("BEGIN")
        found = self._connection.execute(text, params, prepare=False, binary=True).fetchone()  # type: ignore[arg-type]
        self._connection.execute("ROLLBACK")
        assert found is not None
        plan = found[0] if not isinstance(found[0], str) else json.loads(found[0])
        nodes = [plan[0]["Plan"]]
        for node in nodes:
            nodes += node.get("Plans", [])
        return nodes


@pytest.fixture(scope="module")
def plans(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plans]:
    with (
        new_database(postgres) as dsn,
        opened(settings_of(tmp_path_factory.mktemp("plans"), dsn), "tokens"),
        psycopg.connect(dsn, autocommit=True) as connection,
    ):
        connection.execute(FILL)  # type: ignore[arg-type]
        connection.execute(CUTOFFS)
        connection.execute("VACUUM (ANALYZE) tokens.token, tokens.cutoff")
        yield Plans(connection)


IDS = "{" + ",".join(f"{number:032x}" for number in range(100)) + "}"
ONE = f"{1:032x}"
CUT: Mapping[str, Any] = {"key": "k", "number": 1 << 60, "before": "-infinity"}
EXPECTED = [
    ("load", {"ids": IDS}, "token_pkey"),
    ("get", {"id": ONE}, "token_pkey"),
    ("lock", {"id": ONE}, "token_pkey"),
    ("successors", {"ids": [ONE, ONE]}, "token_pkey"),
    ("revoke", {"id": ONE, "hash": None, "kept": 1}, "token_pkey"),
    ("cut_subject", {**CUT, "value": "subject7"}, "token_subject"),
    ("cut_family", {**CUT, "value": ONE}, "token_family"),
    ("cut_client", {**CUT, "value": "client7"}, "token_client"),
    ("cut_device", {**CUT, "value": "device7"}, "token_device"),
    ("cut_everything", {**CUT, "number": 0, "before": "2026-01-01 00:00:10+00", "value": ""}, "token_grant_time"),
    ("list", {"subject": "subject7", "kinds": [1, 2], "after": None, "limit": 50}, "token_subject"),
    ("see", {"ids": [ONE] * 100, "agos": [1.0] * 100}, "token_pkey"),
    ("mark_subject", {**CUT, "kept": 1, "value": "subject7"}, "token_subject"),
    (
        "mark_everything",
        {**CUT, "before": "2026-01-01 00:00:10+00", "kept": 1, "number": 0, "value": ""},
        "token_grant_time",
    ),
    ("purge", {}, "token_purge_time"),
    ("purge_idle", {"kept": 1}, "token_idle"),
    ("purge_lag", {}, "token_purge_time"),
    ("revoked_jwts", {"limit": 10}, "token_revoked_jwt"),
    ("cutoffs", {"limit": 10}, "cutoff_told"),
    ("unmarked", {}, "cutoff_unmarked"),
    ("drop_cutoffs", {}, "cutoff_marked"),
]


@pytest.mark.parametrize(("name", "params", "index"), EXPECTED, ids=[name for name, _, _ in EXPECTED])
def test_it_goes_by_an_index(plans: Plans, name: str, params: dict[str, Any], index: str) -> None:
    nodes = plans.of(name, **params)

    assert index in {node.get("Index Name") for node in nodes}
    scanned = [node for node in nodes if node["Node Type"] == "Seq Scan" and node.get("Relation Name") == "token"]
    assert not scanned
    # Nor many more rows than there are of what was asked for.
    assert (
        sum(node["Actual Rows"] * node["Actual Loops"] for node in nodes if node.get("Relation Name") == "token") < 1000
    )


def test_a_token_is_held_against_revocations_by_their_key(plans: Plans) -> None:
    nodes = plans.of("load", ids=IDS)

    assert "cutoff_pkey" in {node.get("Index Name") for node in nodes}
    assert not [node for node in nodes if node["Node Type"] == "Seq Scan"]
