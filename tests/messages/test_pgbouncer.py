"""The stores through a pgBouncer in transaction mode, with prepared statements and without."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.messages.backlog import Backlogs
from kronos_db.messages.enqueuing import Enqueuing
from kronos_db.messages.inspection import Inspection
from kronos_db.messages.keeper import Keeper
from kronos_db.messages.low_water import LowWater
from kronos_db.messages.model import NewMessage, Receipt, Return, Rules, Wish
from kronos_db.messages.queues import QueuesStore
from kronos_db.messages.store import MessagesStore
from kronos_db.runtime.identifiers import uuid7_text
from tests.parts.domain import mutation, new_database, opened, settings_of

THREADS, EACH = 3, 20


@pytest.mark.parametrize(
    ("fixture", "prepared"), [("pgbouncer_118", False), ("pgbouncer_124", True), ("pgbouncer_124", False)]
)
@pytest.mark.parametrize("ordered", [False, True])
def test_every_statement_through_a_pgbouncer(  # noqa: PLR0917  # fixtures
    request: pytest.FixtureRequest,
    postgres: EmbeddedPostgres,
    tmp_path: Path,
    fixture: str,
    prepared: bool,
    ordered: bool,
) -> None:
    way = request.getfixturevalue(fixture)
    with (
        new_database(postgres) as dsn,
        opened(settings_of(tmp_path, dsn, way, prepared_statements=prepared), "messages") as database,
    ):
        store = MessagesStore(database, LowWater())
        queues = QueuesStore(database, store.queries)
        queue = queues.create("q", ordered, Rules(min_backoff=0.0, max_attempts=3), mutation())
        done: list[str] = []
        finished = threading.Event()

        def produce(seed: int) -> None:
            for number in range(EACH):
                fields: dict[str, Any] = dict.fromkeys(NewMessage._fields)
                fields |= {"id": uuid7_text(), "payload": b"x", "rank": 9 - number % 3, "deduplication_window": 60.0}
                fields |= {"deduplication_key": f"{seed}-{number}"}
                if ordered:
                    fields["ordering_key"] = f"k{number % 7}"
                Enqueuing(store, Backlogs()).enqueue(queue, [NewMessage(**fields)], mutation())

        def consume(seed: int) -> None:
            while not finished.is_set():
                for turn, each in enumerate(store.lease(queue, Wish(10, 1 << 20, 60.0))):
                    receipt = Receipt(each.message.id, each.token)
                    if (turn + each.message.attempts) % 5 == 1 and each.message.attempts < 2:
                        store.nack(queue, [Return(*receipt, 0.0, "again", False)], mutation())
                    else:
                        store.extend(queue, [receipt], 60.0, mutation())
                        assert store.ack(queue, [receipt], mutation()) == [1]
                        done.append(each.message.id)
                if len(done) >= THREADS * EACH:
                    finished.set()

        jobs: list[Callable[[int], None]] = [produce, consume]
        with ThreadPoolExecutor(2 * THREADS) as threads:
            for future in [threads.submit(job, seed) for seed in range(THREADS) for job in jobs]:
                future.result(60)
        Keeper(store, queues).move(lambda: True)
        Keeper(store, queues).clear(lambda: True)

        assert len(done) == len(set(done)) == THREADS * EACH
        stats = Inspection(store).stats(queue)
        assert stats[:5] == (0, 0, 0, 0, 0)
        assert stats.acked_total == THREADS * EACH
