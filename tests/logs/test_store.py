"""The store on every way to PostgreSQL: straight, and through both pgBouncers in transaction mode."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.logs.intake import Intake, read_ours
from kronos_db.logs.keys import Keys
from kronos_db.logs.model import LATEST, Batch, Filter, Listing, Origin, Question, Retention, Rule
from kronos_db.logs.store import LogsStore
from tests.logs.records import record
from tests.parts.domain import mutation, new_database, opened, settings_of

ORIGIN = Origin("0190b6f2-7c1e-7000-8000-000000000001", "service", "{}", "", "", "{}")


@pytest.fixture(params=["straight", "pgbouncer_118", "pgbouncer_124"])
def store(request: pytest.FixtureRequest, postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[LogsStore]:
    way = None if request.param == "straight" else request.getfixturevalue(request.param)
    with new_database(postgres) as dsn:
        settings = settings_of(tmp_path, dsn, way, prepared_statements=request.param != "pgbouncer_118")
        with opened(settings, "logs") as database:
            yield LogsStore(database)


def batch(count: int, service: str = "service", subject: str = "") -> Batch:
    intake = Intake(Keys([], [], "enduser.id"), _Hashes(), b"key")  # type: ignore[arg-type]  # no more is asked of it
    taking = intake.begin(Retention([]))
    attributes = {"enduser.id": subject} if subject else {}
    taking.add(
        ORIGIN._replace(service=service), [record(f"{n}", attributes=attributes) for n in range(count)], read_ours
    )
    made = taking.done()
    made.origins[ORIGIN.id] = ORIGIN
    return made


class _Hashes:
    """In place of a sealer: subjects as they are."""

    def blind_index(self, value: str, _index: Any) -> str:
        return value


def page(store: LogsStore, **fields: Any) -> list[str | None]:
    listing = Listing(1000, "oldest", 0, LATEST, Filter(**fields), None)
    return [each.body for each in store.query(listing).records]


def test_everything_works(store: LogsStore) -> None:
    for size in (1, 3, 500):
        written = batch(size, f"service{size}")
        assert store.write(written, mutation()) is written
    assert len(page(store)) == 504
    assert page(store, service="service3") == ["0", "1", "2"]
    assert store.origins([ORIGIN.id]) == {ORIGIN.id: ORIGIN}
    assert [[each.body for each in records] for records in store.portions([[(written.id, 498, 499)], []])] == [
        ["498", "499"],
        [],
    ]
    minute = time.time_ns() // 60_000_000_000
    question = Question(minute - 5, minute + 5, 10, Filter(), "service", "", 10)
    assert store.tally(question).groups == [("service500", 500), ("service3", 3), ("service1", 1)]
    while store.merge_counts():
        pass
    assert store.tally(question).total == store.stats().records == 504
    assert store.set_rule(Rule("a", 0, 7), mutation()) == Rule("a", 0, 7)
    assert store.rules() == store.list_rules(10, None) == [Rule("a", 0, 7)]
    store.write(batch(40, subject="ann"), mutation())
    assert store.erase("ann", mutation()) == 40
    assert len(page(store)) == 504


def test_small_batches_that_come_together(store: LogsStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.write(batch(number % 5 + 1, "many"), mutation()), range(100)))
    assert len(page(store, service="many")) == 300
    assert store.stats().records == 300


def test_a_batch_is_stored_whole_or_not_at_all(store: LogsStore) -> None:
    store.write(batch(1), mutation())
    broken = batch(300)
    broken.rows[200] = broken.rows[200].replace("\t9\t", "\tnine\t", 1)
    with pytest.raises(psycopg.Error):
        store.write(broken, mutation())
    assert len(page(store)) == 1
    assert store.stats().records == 1
    # The connection is as good as before.
    for _ in range(5):
        store.write(batch(1), mutation())
    assert len(page(store)) == 6
