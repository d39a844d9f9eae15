"""Runs everything on one machine: own PostgreSQL and Redis in a data directory, keys, a credential, and the server."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kronos_db import first_secrets, fleet, schemas
from kronos_db.config import Settings
from kronos_db.embedded.directory import DataDirectory
from kronos_db.embedded.errors import StartCancelledError
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.embedded.redis import EmbeddedRedis
from kronos_db.runtime.stopping import Stop

CALLER = "developer"
Say = Callable[[str], None]
Announce = Callable[[Settings, str], None]


def run(settings: Settings, say: Say, announce: Announce) -> int:
    """Start all parts, migrate, serve until SIGINT, SIGTERM or SIGHUP, and stop all parts. Returns the exit code.

    Calls `say(sentence)` before what takes a while, and `announce(settings, token)` once calls are answered: `settings`
    say where everything is, `token` is a bearer token that may call everything. Raises DataDirectoryInUseError when
    another process holds the directory, and what `fleet.serve` raises.
    """
    stopped = Stop()
    _stop_on_signals(stopped)
    try:
        with environment(settings, say, stopped) as (complete, token):
            return fleet.serve(complete, stopped, lambda running: announce(_addressed(complete, running), token))
    except StartCancelledError:
        say("Stopped before it had started.")
        return 0


@contextmanager
def environment(settings: Settings, say: Say, stopped: threading.Event) -> Iterator[tuple[Settings, str]]:
    """Start PostgreSQL and Redis in the data directory and migrate; yield complete settings and a bearer token.

    Raises StartCancelledError when `stopped` is set meanwhile.
    """
    with ExitStack() as stack:
        directory = DataDirectory(settings.data_dir)
        stack.callback(directory.close)
        found = _make_secrets(directory.keys)
        # What was set explicitly wins, so that one part can be replaced by a real one.
        if settings.postgres_dsn is None:
            say(f"Starting PostgreSQL in {settings.data_dir}/{directory.postgres.name} …")
            postgres = EmbeddedPostgres(directory.postgres)
            stack.callback(postgres.stop)
            postgres.start(cancelled=stopped.is_set)
            found["postgres_dsn"] = postgres.dsn
            found |= {
                "backup_destination": str(directory.path / "backups"),
                "backup_scratch_folder": str(directory.path / "scratch"),
                "backup_restore_folder": str(directory.path / "restored"),
            }
        _go_on_unless(stopped)
        if settings.redis_url is None and EmbeddedRedis.available():
            redis = EmbeddedRedis(directory.redis)
            stack.callback(redis.stop)
            redis.start()
            found["redis_url"] = redis.url
        _go_on_unless(stopped)
        # No load balancer is here to see that it drains.
        complete = Settings.model_validate({"drain_pause": 0.0, **found, **settings.model_dump(exclude_unset=True)})
        schemas.migrate(complete, lambda domain, name: say(f"Migrated {domain}: {name}"))
        yield complete, (directory.keys / "token").read_text(encoding="ascii")


def _stop_on_signals(stopped: threading.Event) -> None:
    """Let signals set `stopped` from the first moment on: what was started by then must not be left behind."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # SIGHUP comes when the terminal is closed, and is ignored below nohup.
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: stopped.set())


def _go_on_unless(stopped: threading.Event) -> None:
    if stopped.is_set():
        raise StartCancelledError("The server was told to stop before it had started.")


def _addressed(settings: Settings, running: fleet.Serving) -> Settings:
    """Return settings with the addresses as they are: port 0 has become a real one."""
    return settings.model_copy(update={"grpc_listen": running.grpc_address, "ops_listen": running.ops_address})


def _make_secrets(folder: Path) -> dict[str, str]:
    """Make what is missing of master key, role secret and credential; return the settings that name them."""
    if not (folder / first_secrets.TOKEN).exists():
        (folder / first_secrets.ACCESS).unlink(missing_ok=True)
    first_secrets.make_secrets(folder, CALLER)
    if not first_secrets.knows_token(folder):
        first_secrets.write_access(folder, CALLER)
    return {
        "master_key_file": str(folder / first_secrets.MASTER_KEY),
        "postgres_role_secret_file": str(folder / first_secrets.ROLE_SECRET),
        "access_file": str(folder / first_secrets.ACCESS),
    }
