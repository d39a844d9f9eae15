"""A PostgreSQL of a test's own, with an engine of backups and a receiver of its WAL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg

from kronos_db.backup.engine import finish
from kronos_db.backup.model import Backup, BackupError, Kind, Latest, Restored, RestoreRequest, RestoreTarget
from kronos_db.backup.postgres import PostgresEngine, Setup
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.crypto.master_key import create_master_key_file
from tests.parts.eventually import eventually

LIMIT = 30.0


class Protected:
    """A database below `folder` that backups are made of, into `destination` (default: a folder beside it)."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        destination: str | None = None,
        key_file: Path | None = None,
    ) -> None:
        self.folder = folder
        self.postgres = EmbeddedPostgres(folder / "postgres", {"fsync": "off", **(settings or {})})
        self.destination = destination or str(folder / "backups")
        self.key_file = key_file or folder / "master.key"
        if key_file is None:
            create_master_key_file(self.key_file)
        self._stopped = threading.Event()
        self._receiver: threading.Thread | None = None
        self.receiver_errors: list[BackupError] = []

    def start(self) -> None:
        """Start PostgreSQL."""
        self.postgres.start()

    def engine(self, *, synchronous: bool = False, interval: float = 0.05, database: bool = True) -> PostgresEngine:
        """Return an engine; without `database`, one that has nothing but destination and master key."""
        return PostgresEngine(
            Setup(
                destination=self.destination,
                master_key_file=self.key_file,
                scratch=self.folder / "scratch",
                dsn=self.postgres.dsn if database else None,
                synchronous=synchronous,
                interval=interval,
            )
        )

    def receive(self, *, synchronous: bool = False, interval: float = 0.05) -> None:
        """Receive WAL in a thread from now on."""
        engine = self.engine(synchronous=synchronous, interval=interval)
        self._stopped.clear()

        def run() -> None:
            try:
                engine.archive(self._stopped)
            except BackupError as error:
                self.receiver_errors.append(error)

        self._receiver = threading.Thread(target=run, name="receive")
        self._receiver.start()
        eventually(lambda: self.receiver_errors or self.one("SELECT count(*) FROM pg_stat_replication") == 1, LIMIT)
        if synchronous:
            eventually(lambda: self.one("SELECT sync_state FROM pg_stat_replication") == "sync", LIMIT)

    def stop_receiving(self) -> None:
        """Stop the receiver."""
        self._stopped.set()
        if self._receiver:
            self._receiver.join(LIMIT)
            assert not self._receiver.is_alive()
            self._receiver = None

    def archived(self) -> None:
        """Wait until all WAL that there is now is in the archive."""
        engine = self.engine()
        eventually(
            lambda: engine.archive_state().lag == 0, LIMIT, lambda: (engine.archive_state(), self.receiver_errors)
        )

    def back_up(self, kind: Kind | None = None) -> Backup:
        """Make a backup."""
        return finish(self.engine().create(kind))

    def restore(self, name: str, target: RestoreTarget = Latest(), **more: object) -> Restored:  # noqa: B008 - frozen
        """Restore into the folder NAME/data, from destination and master key alone."""
        request = RestoreRequest(self.folder / name / "data", target, **more)  # type: ignore[arg-type]
        return finish(self.engine(database=False).restore(request))

    @contextmanager
    def restored(self, name: str, origin: Path | None = None) -> Iterator[psycopg.Connection]:
        """Run what was restored into NAME, and connect to it with the password of `origin` (default: our own)."""
        password = ((origin or self.folder / "postgres") / "password").read_bytes()
        (self.folder / name / "password").write_bytes(password)
        server = EmbeddedPostgres(self.folder / name, {"fsync": "off"})
        server.start()
        try:
            with psycopg.connect(server.dsn, autocommit=True) as connection:
                yield connection
        finally:
            server.stop("immediate")

    def run(self, *statements: str) -> None:
        """Run statements, each in a transaction of its own."""
        with psycopg.connect(self.postgres.dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def one(self, query: str) -> object:
        """Return the one value of a query."""
        with psycopg.connect(self.postgres.dsn, autocommit=True) as connection:
            row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None

    def stop(self) -> None:
        """Stop everything."""
        self.stop_receiving()
        self.postgres.stop("immediate")


Make = Callable[..., Protected]
