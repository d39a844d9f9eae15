"""A queue as pgmq publishes it, in plain SQL through psycopg: one table, a visibility time, SKIP LOCKED.

Written anew after its description: a message is read by moving its visibility time into the future, and deleted by its
id. Beside our own rows in the same PostgreSQL.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

_TABLE = """
CREATE TABLE plain_queue (
    msg_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    read_ct integer NOT NULL DEFAULT 0,
    enqueued_at timestamptz NOT NULL DEFAULT now(),
    vt timestamptz NOT NULL,
    message jsonb
);
CREATE INDEX plain_queue_vt ON plain_queue (vt ASC);
"""
_SEND = """
INSERT INTO plain_queue (vt, message)
SELECT clock_timestamp() + make_interval(secs => %(delay)s), unnest(%(messages)s::jsonb[])
RETURNING msg_id
"""
_READ = """
WITH found AS (
    SELECT msg_id FROM plain_queue WHERE vt <= clock_timestamp() ORDER BY msg_id ASC LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
UPDATE plain_queue AS message
SET vt = clock_timestamp() + interval '30 s', read_ct = read_ct + 1
FROM found
WHERE message.msg_id = found.msg_id
RETURNING message.msg_id, message.read_ct, message.enqueued_at, message.vt, message.message
"""
_DELETE = "DELETE FROM plain_queue WHERE msg_id = ANY(%(ids)s) RETURNING msg_id"


class PlainQueue:
    """The queue, with a number of connections that work side by side. `dsn` is a superuser's."""

    def __init__(self, dsn: str, connections: int, payload: str) -> None:
        self._dsn = dsn
        self._connections = connections
        self._message = Jsonb({"text": payload})
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS plain_queue")
            connection.execute(_TABLE)

    def send(self, batch: int, seconds: float) -> float:
        """Send batches for so long; return messages a second."""
        params = {"delay": 0.0, "messages": [self._message] * batch}
        return self._work(lambda connection: len(connection.execute(_SEND, params).fetchall()), seconds)

    def consume(self, batch: int, seconds: float) -> float:
        """Read and delete batches for so long; return messages a second."""

        def work(connection: psycopg.Connection[Any]) -> int:
            ids = [row[0] for row in connection.execute(_READ, {"limit": batch}).fetchall()]
            return len(connection.execute(_DELETE, {"ids": ids}).fetchall())

        return self._work(work, seconds)

    def delay(self, count: int) -> None:
        """Put in messages that are not to be seen for an hour."""
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            for _ in range(count // 10_000):
                connection.execute(_SEND, {"delay": 3600.0, "messages": [self._message] * 10_000})
            connection.execute("VACUUM (ANALYZE) plain_queue")

    def read_latency(self, rounds: int) -> float:
        """Return the median milliseconds of reading one message just sent."""
        times = []
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            for _ in range(rounds):
                connection.execute(_SEND, {"delay": 0.0, "messages": [self._message]})
                begin = time.perf_counter()
                (row,) = connection.execute(_READ, {"limit": 1}).fetchall()
                times.append((time.perf_counter() - begin) * 1000)
                connection.execute(_DELETE, {"ids": [row[0]]})
        return statistics.median(times)

    def _work(self, work: Callable[[psycopg.Connection[Any]], int], seconds: float) -> float:
        def loop(_: int) -> int:
            count = 0
            with psycopg.connect(self._dsn, autocommit=True, prepare_threshold=0) as connection:
                while time.perf_counter() < until:
                    count += work(connection)
            return count

        begin = time.perf_counter()
        until = begin + seconds
        with ThreadPoolExecutor(self._connections) as pool:
            total = sum(pool.map(loop, range(self._connections)))
        return total / (time.perf_counter() - begin)
