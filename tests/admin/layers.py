"""A PostgreSQL that hostile statements are sent to, with each layer of restricted SQL taken away in turn."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from kronos_db.admin.guard import check
from kronos_db.admin.query_model import QueryLimits
from kronos_db.admin.query_store import _LEFT, Column, Plan, QueryStore, Reading, Row
from kronos_db.admin.querying import Querying, Question
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.pool import Connection, Pool, PoolLimits
from kronos_db.runtime.database.reading_role import READER, Part, Readable, ReadingRole
from kronos_db.runtime.errors import KronosError

LIMITS = QueryLimits(seconds=3.0, cost=10_000_000, rows=1000, bytes=1_000_000)
CANARY = "what stands in the file"
SECRET = "nobody may read this"
RELATIONS = frozenset({"stand.t", "stand.u"})
_PASSWORD = "the password of the reader"
_SETUP = Path(__file__).parent / "hostile" / "setup.sql"
_STATEMENTS = Path(__file__).parent / "hostile" / "statements.sql"
_WORLD = (Path(__file__).parent / "hostile" / "world.sql").read_text()
# Those of plpgsql appear when it is first used.
_SETTINGS = """
SELECT md5(string_agg(name || ' ' || setting, ',' ORDER BY name)) FROM pg_settings WHERE name NOT LIKE 'plpgsql.%'
"""


class Stand:
    """The database, a session of the same role that waits, one that listens, and a file that nobody may read."""

    def __init__(self, folder: Path) -> None:
        settings = {"fsync": "off", "autovacuum": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        self.postgres = EmbeddedPostgres(folder, settings)
        self.postgres.start()
        with psycopg.connect(self.postgres.dsn, autocommit=True) as connection:
            connection.execute("CREATE DATABASE hostile")
        self.superuser = self.postgres.dsn_for("hostile")
        self.reader = make_conninfo(self.superuser, user=READER, password=_PASSWORD)
        self._admin = psycopg.connect(self.superuser, autocommit=True)
        self._admin.execute(_SETUP.read_bytes())
        granted = {"stand.t": frozenset({"id", "kind", "mark"}), "stand.u": frozenset({"id"})}
        text = "".join(
            f"GRANT SELECT ({', '.join(columns)}) ON {name} TO {READER};" for name, columns in granted.items()
        )
        ReadingRole(self.superuser, _PASSWORD, 30).apply([Part("stand", "stand_owner", Readable(text, granted, {}))])
        self.directory = self._make_canary()
        row = self._admin.execute("SELECT lo_from_bytea(0, 'large')").fetchone()
        assert row is not None
        self.object = row[0]
        self._watcher = psycopg.connect(self.superuser, autocommit=True)
        self._watcher.execute("LISTEN watched")
        self._holder = psycopg.connect(self.superuser)
        self._holder.execute("LOCK TABLE stand.waited")
        self._sibling = psycopg.connect(self.reader, autocommit=True)
        self._sibling.execute("SET statement_timeout = 0; SET lock_timeout = 0; SET transaction_timeout = 0")
        self.disturbed: list[str] = []
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._holder.rollback()
        self._thread.join(10)
        for connection in (self._holder, self._sibling, self._watcher, self._admin):
            connection.close()
        self.postgres.stop("immediate")

    def statements(self) -> list[str]:
        """The hostile statements, with what they name here."""
        lines = _STATEMENTS.read_text().splitlines()
        return [self.placed(line) for line in lines if line and not line.startswith("-- ")]

    def placed(self, text: str) -> str:
        """Return a statement with the names of what is here."""
        text = text.replace("PID", str(self._sibling.info.backend_pid))
        return text.replace("DIR", str(self.directory)).replace("OID", str(self.object))

    def world(self) -> tuple[object, ...]:
        """All that a statement could have changed."""
        row = self._admin.execute(_WORLD.encode()).fetchone()
        notified = [each.payload for each in self._watcher.notifies(timeout=0)]
        files = sorted(each.name for each in self.directory.iterdir())
        snapshots = sorted(each.name for each in (self.postgres.data / "pg_snapshots").iterdir())
        settings = (self.postgres.data / "postgresql.auto.conf").read_text()
        return (row, notified, files, snapshots, settings, tuple(self.disturbed))

    def _wait(self) -> None:
        try:
            self._sibling.execute("SELECT id FROM stand.waited")
        except psycopg.Error as error:
            self.disturbed.append(str(error))

    def _make_canary(self) -> Path:
        place = self.postgres.data / "canaries"
        place.mkdir()
        (place / "canary").write_text(CANARY)
        owner = self.postgres.data.stat()
        for each in (place, place / "canary"):
            os.chown(each, owner.st_uid, owner.st_gid)
        return place


class Layered:
    """Restricted SQL with a layer taken away; one session, so that what is left in it is seen."""

    def __init__(
        self,
        dsn: str,
        reading: type[Reading] = Reading,
        store: type[QueryStore] = QueryStore,
        guard: Callable[[str, frozenset[str]], str] = check,
    ) -> None:
        self.pool = Pool("query", dsn, PoolLimits(max_size=1, prepared_statements=False, silence=10.0, min_size=0))
        self.querying = Querying(store({"": self.pool}, reading), {"": RELATIONS}, LIMITS, guard)
        self._settings = self._read(_SETTINGS)

    def run(self, text: str) -> tuple[list[Row], KronosError | None]:
        """Send a statement; return its rows and how it was refused."""
        rows: list[Row] = []
        try:
            with self.querying.run(Question(text)) as result:
                rows.extend(result.rows())
        except KronosError as error:
            return rows, error
        return rows, None

    def left(self) -> list[str]:
        """What is left in the session."""
        found = self._read(_LEFT)
        with self.pool.connection() as connection:
            if connection.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                found.append("a transaction")
        return found if self._read(_SETTINGS) == self._settings else [*found, "a setting"]

    def _read(self, text: str) -> list[str]:
        with self.pool.connection() as connection:
            return [str(row[0]) for row in connection.execute(text.encode(), prepare=False)]


class _SimpleProtocol(Reading):
    """Takes several statements at once."""

    def execute(self, text: str, params: Sequence[object] | None = None) -> psycopg.Cursor[tuple[object, ...]]:
        return self._connection.cursor().execute(text.encode(), params)

    def columns(self, text: str) -> list[Column]:
        described = self.execute(f"SELECT * FROM ({text}\n) AS q LIMIT 0").description or []
        return [Column(each.name, each.type_code, "", 0) for each in described]


class _Writing(Reading):
    def open(self) -> None:
        self.execute("BEGIN TRANSACTION READ WRITE")


class _Timeless(Reading):
    def limit_time(self) -> None:
        pass


class _WithoutCursor(Reading):
    def rows(self, text: str, columns: Sequence[Column], most: int) -> Generator[Row, None, None]:
        for row in self.execute(text).fetchall():
            yield tuple(str(value) for value in row)


class _Bare(_SimpleProtocol, _Timeless):
    """Runs what it is given and commits."""

    def open(self) -> None:
        self.execute("BEGIN TRANSACTION READ WRITE")

    def columns(self, text: str) -> list[Column]:
        return []

    def plan(self, text: str) -> Plan:
        return Plan("", 0, 0)

    def rows(self, text: str, columns: Sequence[Column], most: int) -> Generator[Row, None, None]:
        cursor = self.execute(text)
        if cursor.description:
            for row in cursor.fetchall():
                yield tuple(str(value) for value in row)

    def end(self) -> bool:
        self.over = True
        self._connection.execute("COMMIT")
        return True


class _Committing(Reading):
    """Neither rolls back nor looks at what is left."""

    def end(self) -> bool:
        self.over = True
        if self._connection.closed:
            return False
        self._connection.execute("COMMIT")
        return True


class _AnyRole(QueryStore):
    def _check_role(self, pool: Pool, connection: Connection) -> None:
        pass


class _AnyCost(QueryStore):
    def check_cost(self, plan: Plan, limits: QueryLimits) -> None:
        pass


def _unguarded(text: str, _relations: frozenset[str]) -> str:
    return text


# Which is missing, and what is in its place.
WITHOUT: dict[str, Callable[[Stand], Layered]] = {
    "nothing": lambda stand: Layered(stand.reader),
    "extended protocol": lambda stand: Layered(stand.reader, _SimpleProtocol),
    "guard": lambda stand: Layered(stand.reader, guard=_unguarded),
    "role": lambda stand: Layered(stand.superuser, store=_AnyRole),
    "read only": lambda stand: Layered(stand.reader, _Writing),
    "cost": lambda stand: Layered(stand.reader, store=_AnyCost),
    "time": lambda stand: Layered(stand.reader, _Timeless),
    "cursor": lambda stand: Layered(stand.reader, _WithoutCursor),
    "rollback": lambda stand: Layered(stand.reader, _Committing),
}


def _without_all(stand: Stand) -> Layered:
    return Layered(stand.superuser, _Bare, _AnyRole, _unguarded)


@contextmanager
def without(layer: str, stand: Stand) -> Iterator[Layered]:
    """Give what is left of the layers when one is missing."""
    layered = WITHOUT.get(layer, _without_all)(stand)
    try:
        yield layered
    finally:
        layered.pool.close()
