"""LISTEN and NOTIFY: who listens is woken, also after the connection was lost, and writers wait for nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest

from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.database.changes import About, Change, channel
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.listening import Listener, Notifier
from kronos_db.runtime.database.transaction import Transaction
from kronos_db.runtime.errors import UnavailableError
from kronos_db.schemas import listening_dsns
from tests.parts.domain import mutation, new_database, opened, settings_of
from tests.parts.eventually import eventually

CHANNEL = channel("users")
_OURS = "FROM pg_stat_activity WHERE application_name = 'kronos-db:listen' AND datname = current_database()"


@pytest.fixture(scope="module")
def world(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Database, str]]:
    """The superuser's DSN of a migrated database, the domain in it, and the DSN to listen at."""
    with new_database(postgres) as dsn:
        settings = settings_of(tmp_path_factory.mktemp("listening"), dsn)
        with opened(settings) as database:
            yield dsn, database, listening_dsns(settings, ["users"])["users"]


class Bell:
    """Counts how often it was rung."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def listener(world: tuple[str, Database, str], bell: Bell) -> Iterator[Listener]:
    made = Listener(world[2], {CHANNEL: bell, "another": lambda: None})
    made.start()
    eventually(lambda: made.connects == 1)
    yield made
    made.stop()


@pytest.fixture
def notifier() -> Iterator[Notifier]:
    made = Notifier()
    made.start()
    yield made
    made.stop()


def note(tx: Transaction) -> None:
    tx.note(Change("test", "a"))


@pytest.mark.usefixtures("listener")
def test_it_listens_as_the_role_of_the_domain(world: tuple[str, Database, str]) -> None:
    with psycopg.connect(world[0]) as admin:
        found = admin.execute(f"SELECT usename {_OURS}")
        assert found.fetchall() == [("kronos_users",)]


@pytest.mark.usefixtures("listener")
def test_connecting_wakes(bell: Bell) -> None:
    eventually(lambda: bell.count == 1)


@pytest.mark.usefixtures("listener")
def test_a_committed_write_wakes(world: tuple[str, Database, str], bell: Bell, notifier: Notifier) -> None:
    database = world[1]
    eventually(lambda: bell.count == 1)
    database.on_changed = partial(notifier.changed, database)

    database.write(note, mutation())

    eventually(lambda: bell.count == 2)


def test_only_writes_that_changed_something_notify(world: tuple[str, Database, str]) -> None:
    database, rung = world[1], Bell()
    database.on_changed = rung

    def failing(tx: Transaction) -> None:
        note(tx)
        raise ZeroDivisionError

    database.write(lambda _tx: None, mutation())
    database.write(note, mutation(validate_only=True))
    with pytest.raises(ZeroDivisionError):
        database.write(failing, mutation())
    assert rung.count == 0

    again = mutation()
    database.write(note, again)
    assert rung.count == 1


@pytest.mark.usefixtures("listener")
def test_many_writes_are_few_notifications(
    world: tuple[str, Database, str], bell: Bell, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = world[1]
    eventually(lambda: bell.count == 1)
    go = threading.Event()
    notified = Bell()
    really = database.notify

    def slow(about: About) -> None:
        go.wait(5)
        notified()
        really(about)

    monkeypatch.setattr(database, "notify", slow)
    for _ in range(500):
        notifier.changed(database)
    go.set()

    eventually(lambda: bell.count >= 2)
    # One for the first, one for all that came while that was under way.
    assert notified.count <= 2


def test_a_killed_connection_is_made_again_and_wakes(
    world: tuple[str, Database, str], bell: Bell, listener: Listener, notifier: Notifier
) -> None:
    eventually(lambda: bell.count == 1)
    with psycopg.connect(world[0], autocommit=True) as admin:
        admin.execute(f"SELECT pg_terminate_backend(pid) {_OURS}")

    eventually(lambda: listener.connects == 2)
    eventually(lambda: bell.count == 2)
    notifier.changed(world[1])
    eventually(lambda: bell.count == 3)


def test_what_fails_is_counted_and_given_up(
    world: tuple[str, Database, str], notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise UnavailableError

    with monkeypatch.context() as patched:
        patched.setattr(world[1], "notify", refuse)
        notifier.changed(world[1])
        eventually(lambda: notifier.failures == 1)

    assert notifier.failures == 1


def test_it_ends_while_there_is_no_postgresql(bell: Bell, tmp_path: Path) -> None:
    listener = Listener(f"host={tmp_path} user=nobody", {CHANNEL: bell})
    listener.start()

    listener.stop()

    assert bell.count == 0
    assert not listener._thread.is_alive()


def test_stopped_before_it_began(bell: Bell) -> None:
    Listener("", {CHANNEL: bell}).stop()
    Notifier().stop()
