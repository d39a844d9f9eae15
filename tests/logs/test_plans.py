"""The plans of the logs' queries on many rows: an index each, and no partition that plays no part."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
import pytest
from psycopg import sql

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.logs.model import DAY, LATEST, Direction, Filter, Listing, params_of
from kronos_db.logs.store import QUERIES, road_of
from kronos_db.runtime.database.queries import load_queries
from tests.parts.domain import new_database, opened, settings_of

_PARAMETER = re.compile(r"%\((\w+)\)[sb]")
ROWS = 120_000
NOW = time.time_ns()
# Over four days, of 20 services, a rare one and a quiet one. Few are errors; every tenth has a subject.
FILL = f"""
INSERT INTO logs.record
SELECT md5((n / 100)::text)::uuid, n % 100, 30, CASE WHEN n % 400 = 0 THEN 17 ELSE 9 END,
    {NOW} - n * ({4 * DAY}::bigint / {ROWS}), NULL, NULL,
    CASE WHEN n % 400 = 7 THEN 'rare' WHEN n > 110000 AND n % 4 = 1 THEN 'quiet' ELSE 'service' || n % 20 END,
    md5('origin')::uuid,
    md5((n / 4)::text)::uuid, NULL, 0, 0, 'INFO', NULL, false, 'message number ' || n,
    jsonb_build_object('n', n, 'color', n % 3, 'path', '/api/' || n % 1000),
    CASE WHEN n % 10 = 0 THEN 'subject' || n % 1000 END
FROM generate_series(1, {ROWS}) AS n
"""


@pytest.fixture(scope="module")
def plans(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plans]:
    folder = tmp_path_factory.mktemp("plans")
    with (
        new_database(postgres) as dsn,
        opened(settings_of(folder, dsn), "logs"),
        psycopg.connect(dsn, autocommit=True) as connection,
    ):
        make = "SELECT logs.make_partitions(30::smallint, %s, %s, %s)"
        connection.execute(make, [DAY, NOW - 29 * DAY, NOW + 3 * DAY])
        connection.execute(FILL)
        connection.execute("VACUUM (ANALYZE) logs.record")
        yield Plans(connection)


class Plans:
    """Explains queries with their parameters, planned as an unnamed statement."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.queries = load_queries(QUERIES, "logs")

    def of(self, name: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the nodes of the plan as it ran, outermost first; a generic one where the query is prepared."""
        query = self.queries[name]
        if query.prepared:
            found = self._kept(query.text, params)
        else:
            text = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query.text}"
            found = self.connection.execute(text, params, prepare=False, binary=True).fetchone()
        assert found is not None
        plan = found[0] if not isinstance(found[0], str) else json.loads(found[0])
        nodes = [plan[0]["Plan"]]
        for node in nodes:
            nodes += node.get("Plans", [])
        return nodes

    def _kept(self, text: str, params: Mapping[str, Any]) -> Any:
        """Explain the plan that is kept: made without knowing the parameters, which EXPLAIN itself would show."""
        names = list(dict.fromkeys(_PARAMETER.findall(text)))
        numbered = _PARAMETER.sub(lambda place: f"${names.index(place[1]) + 1}", text)
        values = ", ".join(sql.Literal(params[name]).as_string(self.connection) for name in names)
        self.connection.execute("SET plan_cache_mode = force_generic_plan")
        self.connection.execute(f"PREPARE kept AS {numbered}")
        try:
            return self.connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE kept({values})").fetchone()
        finally:
            self.connection.execute("RESET plan_cache_mode")
            self.connection.execute("DEALLOCATE kept")


def page(direction: Direction, wanted: Filter, **changes: Any) -> tuple[str, dict[str, Any]]:
    newest = direction == "newest"
    params = {
        **params_of(wanted),
        "time_from": 0,
        "time_until": LATEST,
        "after_time": LATEST if newest else -1,
        "after_batch": "ffffffff-ffff-ffff-ffff-ffffffffffff" if newest else "00000000-0000-0000-0000-000000000000",
        "after_part": (1 << 31) - 1 if newest else -1,
        "limit": 101,
        "most_bytes": 1 << 21,
    }
    params |= changes
    after = params["after_time"] if "after_time" in changes else None
    listing = Listing(100, direction, params["time_from"], params["time_until"], wanted, after and [str(after)])
    return f"{direction}_{road_of(listing)}", params


def blocks(nodes: list[dict[str, Any]]) -> int:
    return int(nodes[0]["Shared Hit Blocks"]) + int(nodes[0]["Shared Read Blocks"])


def indexes(nodes: list[dict[str, Any]]) -> set[str]:
    """Return what ends the names of the indexes that were used: those of the partitions begin alike."""
    return {re.split(r"_\d{8}_", node["Index Name"])[1] for node in nodes if "Index Name" in node and touched(node)}


def touched(node: dict[str, Any]) -> bool:
    """Whether a scan met rows: that of an empty partition, which costs nothing, may be of any kind."""
    return bool(node["Actual Rows"] or node.get("Rows Removed by Filter", 0))


def read_whole(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the scans that read a whole partition."""
    return [node for node in nodes if node["Node Type"] == "Seq Scan" and touched(node)]


@pytest.mark.parametrize("direction", ["newest", "oldest"])
@pytest.mark.parametrize(
    ("wanted", "index", "most"),
    [
        (Filter(service="rare"), "service_expr_idx", 700),
        (Filter(service="rare", minimum_severity=9), "service_expr_idx", 700),
        # It has not been heard of for days.
        (Filter(service="quiet"), "service_expr_idx", 700),
        (Filter(service="service0", minimum_severity=17), "service_expr_idx1", 700),
        (Filter(), "time_idx", 700),
        (Filter(trace_id="c4ca4238a0b923820dcc509a6f75849b"), "trace_id_idx", 400),
        (Filter(attributes='{"n": 77}'), "attributes_idx", 700),
    ],
    ids=["service", "severity", "quiet", "failures", "time", "trace", "attribute"],
)
def test_pages_use_an_index(plans: Plans, direction: Direction, wanted: Filter, index: str, most: int) -> None:
    name, params = page(direction, wanted)
    nodes = plans.of(name, params)
    assert read_whole(nodes) == []
    assert indexes(nodes) == {index}
    assert blocks(nodes) < most
    expected = 4 if wanted.trace_id else 1 if wanted.attributes else 101
    assert nodes[0]["Actual Rows"] == expected


@pytest.mark.parametrize("direction", ["newest", "oldest"])
def test_a_late_page_costs_what_the_first_one_costs(plans: Plans, direction: Direction) -> None:
    wanted = Filter(service="rare")
    first = blocks(plans.of(*page(direction, wanted)))
    place = plans.connection.execute(
        "SELECT time, batch, part FROM logs.record WHERE service = 'rare' ORDER BY time OFFSET 150 LIMIT 1"
    ).fetchone()
    assert place is not None
    time_, batch, part = place
    bounds = {"time_until": time_ + 1} if direction == "newest" else {"time_from": time_}
    late = plans.of(*page(direction, wanted, after_time=time_, after_batch=batch, after_part=part, **bounds))
    assert late[0]["Actual Rows"] == 101
    assert blocks(late) <= first + 100


def test_a_range_of_time_leaves_the_other_partitions_alone(plans: Plans) -> None:
    nodes = plans.of(*page("newest", Filter(), time_from=NOW - DAY // 4, time_until=NOW))
    scans = [node for node in nodes if "Relation Name" in node]
    assert len(scans) <= 2


def test_a_tail_reads_the_rows_of_its_portions_alone(plans: Plans) -> None:
    batches = ["c4ca4238-a0b9-2382-0dcc-509a6f75849b", "c81e728d-9d4c-2f63-6f06-7f89cc14862c"]
    params = {"numbers": [0, 0], "batches": batches, "firsts": [0, 10], "lasts": [49, 19]}
    nodes = plans.of("portions", params)
    assert nodes[0]["Actual Rows"] == 60
    assert read_whole(nodes) == []
    assert indexes(nodes) == {"pkey"}
    assert blocks(nodes) < 600


def test_the_records_of_a_subject_are_found_by_their_index(plans: Plans) -> None:
    nodes = plans.of("count_subject", {"subject": "subject10"})
    assert indexes(nodes) == {"subject_idx"}
    plans.connection.execute("BEGIN")
    nodes = plans.of("erase_some", {"subject": "subject10", "limit": 50})
    plans.connection.execute("ROLLBACK")
    assert "subject_idx" in indexes(nodes)
    assert read_whole(nodes) == []
