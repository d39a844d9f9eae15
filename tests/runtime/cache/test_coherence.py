"""Coherence of holders on one PostgreSQL: no write is acknowledged while a copy of before may be answered from."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from kronos_db.config import Settings
from kronos_db.embedded.postgres import EmbeddedPostgres
from kronos_db.runtime.cache import coherence as module
from kronos_db.runtime.cache.board import Board, Mark
from kronos_db.runtime.cache.coherence import Coherence
from kronos_db.runtime.cache.engine import Cache, Loaded, Rules
from kronos_db.runtime.cache.memory import Memory
from kronos_db.runtime.database import holders as holders_module
from kronos_db.runtime.database.changes import Change, channel, tag
from kronos_db.runtime.database.database import Database
from kronos_db.runtime.database.holders import Holders
from kronos_db.runtime.database.queries import Query
from kronos_db.runtime.database.transaction import Transaction
from kronos_db.runtime.errors import KronosError, PositionLostError, UnavailableError
from kronos_db.schemas import open_database
from tests.parts.domain import mutation, new_database, opened, settings_of
from tests.parts.eventually import eventually

LIMIT = 20.0
READ = Query("read", "SELECT id, value FROM users.item WHERE id = ANY(%(ids)s)", "", True)
WRITE = Query(
    "write",
    "INSERT INTO users.item VALUES (%(id)s, %(value)s) ON CONFLICT (id) DO UPDATE SET value = EXCLUDED.value",
    "",
    True,
)


class Gate:
    """Stands before a function: open, or closed for whoever comes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._open = threading.Event()
        self._open.set()
        self.waiting = threading.Event()
        self.calls = 0

    def close(self) -> None:
        self.waiting.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if not self._open.is_set():
            self.waiting.set()
            assert self._open.wait(LIMIT)
        return self._function(*arguments)


class Machine:
    """One holder: its way to the database, its board with the keeper, and copies of items."""

    def __init__(self, settings: Settings) -> None:
        self.database: Database = open_database(settings, "users")
        self.board = Board()
        self.holders = Holders(self.database, self.board.holder)
        # Where the keeper can be held up: before it reads the log, and before it gives a sign of life.
        self.reading, self.beating = Gate(self.holders.changes), Gate(self.holders.beat)
        self.holders.changes = self.reading  # type: ignore[method-assign] # as said
        self.holders.beat = self.beating  # type: ignore[method-assign] # as said
        self.coherence = Coherence("users", self.board, self.holders)
        self.database.copies = self.coherence
        self.loads = 0
        self.items = Cache(self.board, Memory(1 << 20), None).kind(Rules("item"), self._load)

    def start(self) -> None:
        self.coherence.start()
        eventually(self.keeps, LIMIT)

    def keeps(self) -> bool:
        return self.board.mark() is not None

    def stop(self) -> None:
        self.reading.open()
        self.beating.open()
        self.coherence.stop()
        self.database.pool.close()

    def get(self, name: str = "a") -> int | None:
        value = self.items.get(name)
        return None if value is None else int(value)

    def copied(self, name: str = "a") -> int | None:
        """Read until it is answered from a copy; return that."""

        def from_copy() -> bool:
            before = self.loads
            self.get(name)
            return self.loads == before

        eventually(from_copy, LIMIT)
        return self.get(name)

    def put(self, value: int, *names: str, request_id: uuid.UUID | None = None) -> int:
        def work(tx: Transaction) -> int:
            for name in names or ("a",):
                tx.execute(WRITE, {"id": name, "value": value})
                tx.note(Change("item", name))
            return value

        return int(self.database.write(work, mutation(request_id)))

    def _load(self, names: Sequence[str]) -> dict[str, Loaded]:
        self.loads += 1
        rows = self.database.fetch_all(READ, {"ids": list(names)}, lambda name, value: (name, value))
        return {name: Loaded(str(value).encode(), [tag("item", name)]) for name, value in rows}


@pytest.fixture(scope="module")
def admin_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    with new_database(postgres) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def settings(admin_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = settings_of(tmp_path_factory.mktemp("coherence"), admin_dsn)
    with opened(settings), psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute("CREATE TABLE users.item (id text PRIMARY KEY, value int NOT NULL)")
        admin.execute("GRANT ALL ON users.item TO kronos_users")
    return settings


@pytest.fixture
def admin(admin_dsn: str, settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    """The superuser's connection; no holder and one item, `a`, which is 1."""
    with psycopg.connect(admin_dsn, autocommit=True) as connection:
        connection.execute("DELETE FROM users.copy_holder")
        connection.execute("TRUNCATE users.item")
        connection.execute("INSERT INTO users.item VALUES ('a', 1)")
        yield connection


@pytest.fixture
def machines(settings: Settings, admin: psycopg.Connection[Any]) -> Iterator[list[Machine]]:
    """Two machines that keep copies."""
    with ExitStack() as stack:
        made = [Machine(settings) for _ in range(2)]
        for machine in made:
            stack.callback(machine.stop)
            machine.start()
        yield made


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> float:
    """A lease that a test may wait for."""
    monkeypatch.setattr(module, "LEASE", 0.4)
    monkeypatch.setattr(module, "_SILENCE", 0.48)
    monkeypatch.setattr(module, "_BEAT", 0.05)
    return 0.4


def holders(admin: psycopg.Connection[Any]) -> set[uuid.UUID]:
    return {holder for (holder,) in admin.execute("SELECT id FROM users.copy_holder")}


def waits_for(writer: Machine, write: Future[int]) -> None:
    """Return when `write` has asked several times whether the others are so far, and goes on asking."""
    asked = Gate(writer.holders.behind)
    writer.holders.behind = asked  # type: ignore[method-assign] # to count
    eventually(lambda: asked.calls >= 3, LIMIT)
    assert not write.done()


def test_a_write_is_not_acknowledged_while_another_machine_has_the_copy(
    machines: list[Machine], threads: ThreadPoolExecutor
) -> None:
    writer, other = machines
    assert other.copied() == 1
    other.reading.close()
    write = threads.submit(writer.put, 2)
    waits_for(writer, write)
    assert other.get() == 1, "not acknowledged: the copy may be answered from"
    assert writer.get() == 2, "on its own machine it is old at once"
    other.reading.open()
    assert write.result(LIMIT) == 2
    assert other.get() == 2


def test_every_acknowledged_write_is_seen_by_the_others(short_lease: float, machines: list[Machine]) -> None:
    for value in range(2, 12):
        writer, other = machines[value % 2], machines[(value + 1) % 2]
        other.copied()
        writer.put(value)
        assert [other.get(), writer.get()] == [value, value]


def test_who_is_woken_does_not_make_a_write_wait_for_its_next_beat(
    settings: Settings, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEASE", 60.0)
    monkeypatch.setattr(module, "_BEAT", 30.0)
    monkeypatch.setattr(module, "_SILENCE", 72.0)
    with ExitStack() as stack:
        writer, other = Machine(settings), Machine(settings)
        for machine in (writer, other):
            stack.callback(machine.stop)
            machine.start()
        called: list[bool] = []

        def call() -> None:
            called.append(True)
            other.coherence.wake.set()

        monkeypatch.setattr(writer.holders, "call", call)
        other.copied()
        started = time.monotonic()
        writer.put(2)
        assert time.monotonic() - started < 5.0
        assert called
        assert other.get() == 2


def test_calls_reach_those_who_listen(machines: list[Machine], admin: psycopg.Connection[Any]) -> None:
    name = channel("users", "copies")
    admin.execute(f"LISTEN {name}")
    machines[0].holders.call()
    assert [notice.channel for notice in admin.notifies(timeout=LIMIT, stop_after=1)] == [name]


@pytest.mark.parametrize("stuck", ["reading", "beating"])
def test_a_holder_without_a_sign_of_life_is_counted_out_when_it_answers_nothing_from_copies(
    short_lease: float,
    machines: list[Machine],
    *,
    threads: ThreadPoolExecutor,
    admin: psycopg.Connection[Any],
    stuck: str,
) -> None:
    writer, other = machines
    assert other.copied() == 1
    gate: Gate = getattr(other, stuck)
    gate.close()
    assert gate.waiting.wait(LIMIT)
    epoch, lost = other.board.epoch, []

    def watch() -> int:
        writer.put(2)
        # The very moment of the acknowledgement.
        lost.append((other.board.mark(), other.board.is_current(Mark(epoch, 1 << 60), (), module.now())))
        return 2

    assert threads.submit(watch).result(LIMIT) == 2
    assert lost == [(None, False)]
    assert holders(admin) == {writer.board.holder}
    assert other.get() == 2, "it reads, although its thread is stuck still"
    gate.open()
    eventually(other.keeps, LIMIT)
    assert other.board.epoch > epoch, "everything is void"
    assert holders(admin) == {writer.board.holder, other.board.holder}
    assert other.copied() == 2
    writer.put(3)
    assert other.get() == 3


def test_a_sign_of_life_that_is_confirmed_late_extends_nothing(
    short_lease: float, machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL has it, and the answer comes when the holder has long been counted out."""
    writer, other = machines
    assert other.copied() == 1
    beat, late = other.holders.beat, threading.Event()
    beaten: list[bool] = []

    def confirmed_late(*arguments: Any) -> bool:
        beaten.append(beat(*arguments))
        if len(beaten) == 1:
            assert late.wait(LIMIT)
        return beaten[-1]

    monkeypatch.setattr(other.holders, "beat", confirmed_late)
    extended: list[tuple[int, int]] = []
    extend = other.board.extend

    def recorded(epoch: int, until: int) -> bool:
        extended.append((until, module.now()))
        return extend(epoch, until)

    eventually(lambda: beaten, LIMIT)
    monkeypatch.setattr(other.board, "extend", recorded)
    epoch = other.board.epoch
    writer.put(2)
    assert other.board.mark() is None
    late.set()
    eventually(lambda: other.keeps() and other.board.epoch > epoch, LIMIT)
    assert beaten[:2] == [True, False]
    until, at = extended[0]
    assert until < at, "the lease had ended before it was extended"
    assert other.get() == 2


def test_who_stops_in_order_is_waited_for_by_nobody(machines: list[Machine], admin: psycopg.Connection[Any]) -> None:
    writer, other = machines
    other.copied()
    other.coherence.stop()
    assert holders(admin) == {writer.board.holder}
    assert other.board.mark() is None
    started = time.monotonic()
    writer.put(2)
    assert time.monotonic() - started < module.LEASE / 2
    assert other.get() == 2


def test_the_next_process_keeps_the_board_of_one_that_stopped(
    settings: Settings, admin: psycopg.Connection[Any], tmp_path: Path
) -> None:
    database = open_database(settings, "users")
    boards = [Board(tmp_path / "users.board") for _ in range(2)]
    keepers = [Coherence("users", board, Holders(database, board.holder)) for board in boards]
    try:
        keepers[0].start()
        eventually(lambda: boards[1].mark() is not None, LIMIT)
        keepers[1].start()
        epoch = boards[1].epoch
        keepers[0].stop()
        eventually(lambda: boards[0].mark() is not None, LIMIT)
        assert boards[0].epoch > epoch
        assert holders(admin) == {boards[0].holder}
    finally:
        for keeper in keepers:
            keeper.stop()
        database.pool.close()
    assert holders(admin) == set()


def test_nothing_is_answered_from_copies_while_postgresql_is_away(
    short_lease: float, machines: list[Machine], postgres: EmbeddedPostgres, admin_dsn: str
) -> None:
    one, other = machines
    assert one.copied() == other.copied() == 1
    name = psycopg.conninfo.conninfo_to_dict(admin_dsn)["dbname"]
    with psycopg.connect(postgres.dsn, autocommit=True) as elsewhere:
        allow = sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}")
        elsewhere.execute(allow.format(sql.Identifier(str(name)), sql.Literal(False)))
        try:
            elsewhere.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
                " AND backend_type = 'client backend'",
                [name],
            )
            eventually(lambda: not one.keeps() and not other.keeps(), LIMIT)
            with pytest.raises(KronosError):
                one.get()
        finally:
            elsewhere.execute(allow.format(sql.Identifier(str(name)), sql.Literal(True)))
    eventually(lambda: one.keeps() and other.keeps(), LIMIT)
    assert one.copied() == 1


def test_a_repeat_makes_good_for_a_writer_that_died_between_commit_and_board(
    machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper is held up: none but the repeat puts the change on the board."""
    writer, _ = machines
    assert writer.copied() == 1
    writer.reading.close()
    assert writer.reading.waiting.wait(LIMIT)
    request_id = uuid.uuid4()

    def die(*_arguments: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as dying:
        dying.setattr(writer.coherence, "outdate", die)
        with pytest.raises(RuntimeError, match="killed"):
            writer.put(2, request_id=request_id)
    assert writer.get() == 1, "nobody was told"
    assert writer.put(2, request_id=request_id) == 2
    assert writer.get() == 2


def test_a_repeat_on_another_machine_waits_for_the_first_one(
    machines: list[Machine], threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    died, other = machines
    assert died.copied() == 1
    died.reading.close()
    request_id = uuid.uuid4()

    def die(*_arguments: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(died.coherence, "outdate", die)
    with pytest.raises(RuntimeError, match="killed"):
        died.put(2, request_id=request_id)
    repeat = threads.submit(other.put, 2, request_id=request_id)
    waits_for(other, repeat)
    died.reading.open()
    assert repeat.result(LIMIT) == 2
    assert died.get() == 2


def on_timeline(database: Database, name: str, query: Query) -> Query:
    """Return `query` as it is answered on another timeline."""
    text = query.text.replace("left(pg_walfile_name(pg_current_wal_lsn()), 8)", "'0000000A'")
    assert text != query.text, name
    return replace(query, text=text)


def test_a_write_on_another_timeline_voids_everything(
    short_lease: float, machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, other = machines
    writer.put(7, "b")
    assert (writer.copied("b"), other.copied("b")) == (7, 7)
    epochs = [machine.board.epoch for machine in machines]
    other.reading.close()
    log = dict(writer.database._log.queries)
    log["after_commit"] = on_timeline(writer.database, "after_commit", log["after_commit"])
    monkeypatch.setattr(writer.database._log, "queries", log)
    own = dict(writer.holders._queries)
    own["behind"] = on_timeline(writer.database, "behind", own["behind"])
    monkeypatch.setattr(writer.holders, "_queries", own)
    outdate, seen = writer.coherence.outdate, []

    def then_look(*arguments: Any) -> None:
        outdate(*arguments)
        seen.extend((machine.keeps(), machine.board.epoch) for machine in machines)

    monkeypatch.setattr(writer.coherence, "outdate", then_look)
    writer.put(2)
    (_, epoch), (other_keeps, _) = seen
    assert epoch > epochs[0], "also of what the write did not touch"
    assert not other_keeps, "a holder of the old timeline is counted out whatever it has applied"
    monkeypatch.undo()


def test_who_follows_another_timeline_gives_no_sign_of_life(machines: list[Machine]) -> None:
    holder = machines[0].holders
    position = machines[0].database.position()
    assert holder.beat(position, machines[0].database.instant().timeline)
    assert not holder.beat(position, "0000000A")


def test_a_change_of_more_than_a_page_is_applied_as_a_whole(
    machines: list[Machine], threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders_module, "_PAGE", 10)
    writer, other = machines
    names = [f"item {number:02}" for number in range(35)]
    writer.put(1, *names)
    for name in names:
        other.copied(name)
    changes, third, go_on = other.holders.changes, threading.Event(), threading.Event()
    pages: list[int] = []

    def stop_at_the_third(position: Any) -> Any:
        if position.until is not None:
            pages.append(position.part)
            if position.part == 20:
                third.set()
                assert go_on.wait(LIMIT)
        return changes(position)

    monkeypatch.setattr(other.holders, "changes", stop_at_the_third)
    write = threads.submit(writer.put, 2, *names)
    assert third.wait(LIMIT)
    waits_for(writer, write)
    assert other.get(names[-1]) == 1
    go_on.set()
    assert write.result(LIMIT) == 2
    assert [other.get(name) for name in names] == [2] * len(names)
    assert pages == [10, 20, 30]


def test_who_cannot_go_on_from_where_it_was_begins_anew(
    machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = machines
    one.copied()
    epoch, changes, lost = one.board.epoch, one.holders.changes, []

    def lose_it_once(position: Any) -> Any:
        if not lost:
            lost.append(position)
            raise PositionLostError("removed")
        return changes(position)

    monkeypatch.setattr(one.holders, "changes", lose_it_once)
    eventually(lambda: one.board.epoch > epoch and one.keeps(), LIMIT)
    other.put(2)
    assert one.get() == 2


def test_a_write_gives_up_when_the_other_lives_and_does_not_drop_its_copies(
    machines: list[Machine], admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its signs of life come, and never say more: the write is not acknowledged, and the repeat is."""
    monkeypatch.setattr(module, "_PATIENCE", 0.3)
    writer, other = machines
    assert other.copied() == 1
    other.reading.close()
    assert other.reading.waiting.wait(LIMIT)
    behind = writer.holders.behind

    def alive(at: int) -> dict[uuid.UUID, int]:
        admin.execute("UPDATE users.copy_holder SET beat = beat + 1 WHERE id = %s", [other.board.holder])
        return behind(at)

    monkeypatch.setattr(writer.holders, "behind", alive)
    request_id = uuid.uuid4()
    with pytest.raises(UnavailableError, match="does not drop"):
        writer.put(2, request_id=request_id)
    other.reading.open()
    assert writer.put(2, request_id=request_id) == 2
    assert other.get() == 2


def test_who_gave_a_sign_of_life_meanwhile_is_not_counted_out(
    machines: list[Machine], admin: psycopg.Connection[Any]
) -> None:
    writer, other = machines
    (beat,) = admin.execute("SELECT beat FROM users.copy_holder WHERE id = %s", [other.board.holder]).fetchone() or (0,)
    writer.holders.expel(other.board.holder, beat - 1)
    assert other.board.holder in holders(admin)


def test_a_holder_that_enters_after_a_write_looked_sees_it(
    settings: Settings, admin: psycopg.Connection[Any], threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write finds nobody to wait for; who enters before it is acknowledged reads what it wrote."""
    with ExitStack() as stack:
        writer, late = Machine(settings), Machine(settings)
        stack.callback(writer.stop)
        stack.callback(late.stop)
        writer.start()
        outdate, others = writer.coherence.outdate, []

        def then(tags: Sequence[str], snapshot: str, timeline: str, other_holders: bool) -> None:
            others.append(other_holders)
            late.start()
            assert late.copied() == 2
            outdate(tags, snapshot, timeline, other_holders)

        monkeypatch.setattr(writer.coherence, "outdate", then)
        writer.put(2)
        assert others == [False]
        assert late.get() == 2
