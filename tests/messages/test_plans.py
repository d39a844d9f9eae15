"""What statements touch: the ready path passes over neither delayed, leased nor dead rows, and not those long gone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
import pytest

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.messages.backlog import Backlogs
from kronos_db.messages.enqueuing import Enqueuing
from kronos_db.messages.low_water import BEGINNING, LowWater
from kronos_db.messages.model import RANKS, NewMessage, Queue, Receipt, Rules, Wish
from kronos_db.messages.queues import QueuesStore
from kronos_db.messages.store import MessagesStore
from kronos_db.runtime.identifiers import uuid7_text
from tests.parts.domain import mutation, new_database, opened, settings_of

DELAYED, LEASED, BLOCKED = 40_000, 20_000, 5_000
# Rows in every state that a ready scan must not see, in a bin with none that it should.
FILL = f"""
INSERT INTO messages.message (bin, id, state, rank, position, due_time, lease_token, ordering_key, number, enqueue_time,
    payload)
SELECT %(bin)s, gen_random_uuid(), kind, 9, n, CASE WHEN kind < 3 THEN now() + interval '1 h' + n * interval '1 ms' END,
    CASE WHEN kind = 2 THEN gen_random_uuid() END, CASE WHEN kind = 3 THEN 'k' || n %% 100 END,
    CASE WHEN kind = 3 THEN n END, now(), 'x'
FROM generate_series(1, {DELAYED + LEASED + BLOCKED}) AS n,
    LATERAL (SELECT CASE WHEN n <= {DELAYED} THEN 1 WHEN n <= {DELAYED + LEASED} THEN 2 ELSE 3 END) AS of (kind)
"""


class Bench:
    """A store on a database of its own, and a superuser who explains."""

    def __init__(self, store: MessagesStore, queue: Queue, dsn: str, admin: psycopg.Connection[Any]) -> None:
        self.store = store
        self.queue = queue
        self.dsn = dsn
        self.admin = admin

    def enqueue(self, count: int, **fields: Any) -> None:
        plain = {"payload": b"x" * 100, "headers": None, "rank": 9, "ordering_key": None, "delay": None}
        rest = {"due_time": None, "life": None, "deduplication_key": None, "deduplication_window": 300.0}
        new = [NewMessage(uuid7_text(), **{**plain, **rest, **fields}) for _ in range(count)]
        Enqueuing(self.store, Backlogs()).enqueue(self.queue, new, mutation())

    def cycle(self, rounds: int) -> None:
        """Enqueue, lease and acknowledge a thousand messages again and again."""
        for _ in range(rounds):
            self.enqueue(1000)
            leased = self.store.lease(self.queue, Wish(1000, 1 << 24, 60.0))
            assert len(leased) == 1000
            receipts = [Receipt(each.message.id, each.token) for each in leased]
            assert set(self.store.ack(self.queue, receipts, mutation())) == {1}

    def lease_params(self, lows: list[int]) -> dict[str, Any]:
        wish = {"limit": 50, "bytes": 1 << 20, "seconds": 30.0, "token": uuid7_text()}
        return {"bin": self.queue.bin, "ranks": list(RANKS), "lows": lows, **wish}

    def explain(self, name: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the nodes of the plan as it ran, outermost first; what it did is rolled back."""
        text = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {self.store.queries[name].text}"
        with self.admin.transaction(force_rollback=True):
            self.admin.execute("SET LOCAL enable_seqscan = off")
            found = self.admin.execute(text, params, prepare=False, binary=True).fetchone()
        assert found is not None
        plan = found[0] if not isinstance(found[0], str) else json.loads(found[0])
        nodes = [plan[0]["Plan"]]
        for node in nodes:
            nodes += node.get("Plans", [])
        return nodes


def blocks(nodes: list[dict[str, Any]]) -> int:
    return int(nodes[0]["Shared Hit Blocks"]) + int(nodes[0]["Shared Read Blocks"])


def indexes(nodes: list[dict[str, Any]]) -> set[str]:
    return {node["Index Name"] for node in nodes if "Index Name" in node}


def scans(nodes: list[dict[str, Any]]) -> list[str]:
    """Tables of ours that were walked from end to end."""
    walked = [node for node in nodes if node["Node Type"] == "Seq Scan"]
    return [node["Relation Name"] for node in walked if node["Relation Name"] in {"message", "dead_letter", "tally"}]


@pytest.fixture
def bench(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("plans")
    with (
        new_database(postgres) as dsn,
        opened(settings_of(folder, dsn), "messages") as database,
        psycopg.connect(dsn, autocommit=True) as admin,
    ):
        store = MessagesStore(database, LowWater())
        queue = QueuesStore(database, store.queries).create("plans", False, Rules(), mutation())
        yield Bench(store, queue, dsn, admin)


def test_the_ready_path_touches_ready_rows_alone(bench: Bench) -> None:
    nothing = [0] * len(RANKS)
    empty = blocks(bench.explain("lease", bench.lease_params(nothing)))
    bench.admin.execute(FILL, {"bin": bench.queue.bin})
    bench.admin.execute("ANALYZE messages.message")

    beside = bench.explain("lease", bench.lease_params(nothing))

    assert "message_ready" in indexes(beside)
    assert scans(beside) == []
    assert blocks(beside) <= empty + 30
    bench.enqueue(50)
    full = bench.explain("lease", bench.lease_params(nothing))
    assert [node["Actual Rows"] for node in full if node.get("Index Name") == "message_ready"]
    # 50 rows: each is found, locked, and written with an entry in two indexes.
    assert blocks(full) < 1500
    due = bench.explain("revive", {"bin": bench.queue.bin, "low": BEGINNING, "max_attempts": 10, "limit": 500})
    assert "message_due" in indexes(due)
    assert scans(due) == []
    assert blocks(due) < 30


def test_acks_and_the_rest_use_indexes(bench: Bench) -> None:
    bench.admin.execute(FILL, {"bin": bench.queue.bin})
    bench.admin.execute("ANALYZE messages.message")
    rows = bench.admin.execute("SELECT id, lease_token FROM messages.message WHERE state = 2 LIMIT 50").fetchall()
    ids, tokens = [str(row[0]) for row in rows], [str(row[1]) for row in rows]
    bin_id = bench.queue.bin
    rules = {"max_attempts": 10, "min_backoff": 1.0, "max_backoff": 9.0, "dead_letter_queue": ""}
    a_nack = {"delays": [None] * 50, "reasons": [""] * 50, "rejected": [False] * 25 + [True] * 25}
    dead_bin = bench.queue.dead_bin
    statements: dict[str, dict[str, Any]] = {
        "ack": {"bins": [bin_id] * 50, "ids": ids, "tokens": tokens},
        "ack_in_order": {"bins": [bin_id] * 50, "ids": ids, "tokens": tokens},
        "extend": {"bin": bin_id, "ids": ids, "tokens": tokens, "seconds": 30.0},
        "nack": {"bin": bin_id, "dead_bin": dead_bin, "ids": ids, "tokens": tokens, **rules, **a_nack},
        "cancel": {"bin": bin_id, "ids": ids},
        "promote": {"bins": [bin_id] * 3, "keys": ["k1", "k2", "k3"], "numbers": [0, 0, 0]},
        "exhausted": {"bin": bin_id, "low": BEGINNING, "max_attempts": 1, "limit": 500},
        "astir": {"bins": [bin_id], "ranks": list(RANKS), "lows": [0], "due_lows": [BEGINNING]},
        "lowest": {"bin": bin_id, "ranks": list(RANKS), "lows": [0] * 10},
    }
    for name, params in statements.items():
        nodes = bench.explain(name, params)
        assert scans(nodes) == [], name
        assert blocks(nodes) < 3000, name


def test_a_full_queue_lets_a_page_be_peeked(bench: Bench) -> None:
    bench.admin.execute(FILL, {"bin": bench.queue.bin})
    bench.admin.execute("ANALYZE messages.message")
    no_id = "00000000-0000-0000-0000-000000000000"
    pages: dict[str, dict[str, Any]] = {
        "peek_ready": {"after_rank": -1, "after_position": 0, "after_id": no_id},
        "peek_due": {"state": 1, "after_time": "-infinity", "after_id": no_id},
        "peek_blocked": {"after_key": "k5", "after_number": DELAYED + LEASED + 2_000},
    }
    for name, params in pages.items():
        nodes = bench.explain(name, {"bin": bench.queue.bin, "limit": 50, "bytes": 1 << 20, **params})
        assert scans(nodes) == [], name
        assert blocks(nodes) < 400, name


def test_an_old_snapshot_does_not_slow_the_ready_path(bench: Bench) -> None:
    """No row that was acknowledged can be removed while it is open: whoever begins at the beginning passes them all."""
    bench.cycle(1)
    with psycopg.connect(bench.dsn) as old:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM messages.message")
        bench.cycle(20)
        bench.store.low_water._of(bench.queue.bin).looked = 0.0
        bench.cycle(1)
        places = bench.store.low_water.places(bench.queue.bin)
        assert min(places) > 0
        bench.enqueue(50)

        def passed(lows: list[int]) -> int:
            return blocks(bench.explain("lowest", {"bin": bench.queue.bin, "ranks": list(RANKS), "lows": lows}))

        assert passed([0] * len(RANKS)) > 500
        assert passed(places) < 60
        assert len(bench.store.lease(bench.queue, Wish(100, 1 << 20, 30.0))) == 50


def test_a_mark_passes_over_nothing_that_comes_late(bench: Bench) -> None:
    """A transaction that began before the others and commits after them has a place below theirs."""
    with psycopg.connect(bench.dsn) as late:
        late.execute(
            "INSERT INTO messages.message (bin, id, state, rank, position, enqueue_time, payload)"
            " VALUES (%s, gen_random_uuid(), 0, 9, (pg_current_xact_id()::text::bigint << 16) + 1, now(), 'late')",
            [bench.queue.bin],
        )
        for _ in range(3):
            bench.store.low_water._of(bench.queue.bin).looked = 0.0
            bench.cycle(1)
        late.commit()

    (found,) = bench.store.lease(bench.queue, Wish(10, 1 << 20, 30.0))
    assert found.message.payload == b"late"


def test_a_mark_passes_over_nothing_that_is_taken_and_let_go(bench: Bench) -> None:
    bench.enqueue(10)
    with psycopg.connect(bench.dsn) as other:
        # Another process leases the first ones, and dies before its commit.
        other.execute(
            "SELECT id FROM messages.message WHERE bin = %s AND state = 0 ORDER BY position LIMIT 5 FOR UPDATE",
            [bench.queue.bin],
        )
        bench.store.low_water._of(bench.queue.bin).looked = 0.0
        assert len(bench.store.lease(bench.queue, Wish(10, 1 << 20, 30.0))) == 5
        other.rollback()

    assert len(bench.store.lease(bench.queue, Wish(10, 1 << 20, 30.0))) == 5


def test_a_mark_that_is_wrong_is_found_anew(bench: Bench) -> None:
    """As after a failover that lost transactions: places below the mark are given again."""
    bench.enqueue(5)
    marks = bench.store.low_water._of(bench.queue.bin)
    marks.places = [1 << 60] * len(RANKS)
    marks.anew = 0.0
    assert bench.store.lease(bench.queue, Wish(10, 1 << 20, 30.0)) == []

    bench.admin.execute(
        "INSERT INTO messages.message (bin, id, state, rank, position, enqueue_time, payload)"
        " VALUES (%s, gen_random_uuid(), 0, 0, 1::bigint << 61, now(), 'new')",
        [bench.queue.bin],
    )
    marks.looked = 0.0
    assert len(bench.store.lease(bench.queue, Wish(1, 1 << 20, 30.0))) == 1
    assert len(bench.store.lease(bench.queue, Wish(10, 1 << 20, 30.0))) == 5
