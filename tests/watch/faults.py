"""Faults as they are injected into a fleet that serves, each with the alerts that must fire over it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import grpc
import psycopg
from kronos.admin.v1 import backups_pb2, statements_pb2, status_pb2
from kronos.admin.v1.admin_pb2_grpc import AdminServiceStub
from kronos.messages.v1 import messages_pb2
from kronos.users.v1 import users_pb2
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from kronos_db.embedded.postgres import EmbeddedPostgres
from tests.logs.records import record, write_request
from tests.messages import population as messages
from tests.parts.eventually import eventually
from tests.tokens import population as tokens
from tests.watch.load import Load
from tests.watch.site import LIMIT, Site

# Bytes of a segment of WAL.
SEGMENT = 16 * 1024 * 1024

Inject = Callable[[Site, Load], AbstractContextManager[None]]


class Fault(NamedTuple):
    """What is done, the alerts that it must bring, and the limits that are lowered so that they come soon."""

    inject: Inject
    alerts: tuple[str, ...]
    limits: Mapping[str, float] = {}


@contextmanager
def again_and_again(*calls: Callable[[], object], threads: int = 1, pause: float = 0.3) -> Iterator[None]:
    """Make calls in other threads until the end, whatever becomes of them."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            for call in calls:
                with suppress(grpc.RpcError):
                    call()
            over.wait(pause)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in running:
            thread.join()


@contextmanager
def bad_content(site: Site, load: Load) -> Iterator[None]:
    """A poison message, a queue without consumers, bad records, a caller without a token, a value that was changed."""
    poisoned = messages.create(load.messages, max_attempts=1)
    messages.enqueue(load.messages, poisoned, "poison")
    (leased,) = messages.lease(load.messages, poisoned)
    nack = messages_pb2.Nack(message_id=leased.message.id, lease_token=leased.lease_token, reason="cannot be read")
    load.messages.NackMessages(messages_pb2.NackMessagesRequest(queue=poisoned, nacks=[nack]), timeout=LIMIT)
    forgotten = messages.create(load.messages)
    messages.enqueue(load.messages, forgotten, "one")
    site.run("UPDATE users.users SET email = left(email, -6) || 'AAAAAA' WHERE id = %s", load.spare)
    bad = write_request("shop", [record("x" * 2_000_000)])
    changed = users_pb2.GetUserRequest(id=load.spare)
    nobody = UsersServiceStub(site.channel)
    with again_and_again(
        lambda: load.logs.WriteLogs(bad, timeout=LIMIT),
        lambda: load.users.GetUser(changed, timeout=LIMIT),
        lambda: nobody.GetUser(changed, timeout=LIMIT),
    ):
        yield
    for name in (poisoned, forgotten):
        load.messages.DeleteQueue(messages_pb2.DeleteQueueRequest(queue=name), timeout=LIMIT)


@contextmanager
def no_redis(site: Site, load: Load) -> Iterator[None]:
    """Redis is gone, and quotas are asked for."""
    site.redis.stop()
    try:
        with again_and_again(load.consume):
            yield
    finally:
        site.redis.start()


@contextmanager
def a_lock(site: Site, load: Load) -> Iterator[None]:
    """Somebody's transaction locks the table of users, and many create some."""

    def create() -> None:
        name = f"u-{uuid.uuid4().hex[:12]}"
        user = users_pb2.User(username=name, email=f"{name}@example.org")
        # A connection of its own: they are shared out to the processes.
        with grpc.insecure_channel(site.fleet.settings.grpc_listen, [("grpc.use_local_subchannel_pool", 1)]) as one:
            users = UsersServiceStub(one)
            request = users_pb2.CreateUserRequest(user=user)
            with ExitStack() as calls:
                for _ in range(20):
                    call = users.CreateUser.future(request, timeout=10, metadata=site.fleet.bearer)
                    calls.callback(lambda each=call: each.exception())

    with psycopg.connect(site.postgres.dsn) as locking:
        locking.execute("LOCK TABLE users.users IN ACCESS EXCLUSIVE MODE")
        with again_and_again(create, threads=3):
            try:
                yield
            finally:
                locking.rollback()


@contextmanager
def no_postgres(site: Site, load: Load) -> Iterator[None]:
    """PostgreSQL is gone, calls go on, and a caller without a token comes again and again."""
    some = users_pb2.ListUsersRequest(page_size=1)
    nobody, ask = AdminServiceStub(site.channel), status_pb2.GetStatusRequest()
    site.postgres.stop("fast")
    try:
        with again_and_again(
            lambda: load.users.ListUsers(some, timeout=5),
            lambda: nobody.GetStatus(ask, timeout=5),
            threads=3,
        ):
            yield
    finally:
        site.postgres.start()
        site.fleet.await_ready()


@contextmanager
def a_frozen_process(site: Site, load: Load) -> Iterator[None]:
    """One of the serving processes is stopped where it stands."""
    process = site.fleet.children()[0]
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@contextmanager
def killed_processes(site: Site, load: Load) -> Iterator[None]:
    """A serving process is killed three times in a row."""
    for _ in range(3):
        before = {child.pid for child in site.fleet.children()}
        start = site.prometheus.value("sum(process_start_time_seconds)")
        site.fleet.children()[0].kill()
        eventually(lambda b=before: {child.pid for child in site.fleet.children()} != b, LIMIT)  # type: ignore[misc] # bound at once
        site.fleet.await_ready()
        eventually(lambda s=start: site.prometheus.value("sum(process_start_time_seconds)") != s, LIMIT)  # type: ignore[misc] # as above
    yield


@contextmanager
def lost_connections(site: Site, load: Load) -> Iterator[None]:
    """Somebody ends the sessions of a domain again and again."""

    def end() -> None:
        site.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'kronos_users'")

    with again_and_again(end, load.round):
        yield


@contextmanager
def a_slow_statement(site: Site, load: Load) -> Iterator[None]:
    """A query that nothing else runs waits for a lock, and is done in the end."""
    with psycopg.connect(site.postgres.dsn) as locking:
        # A row: tables are locked while a statement is planned, and that is not counted.
        locking.execute("SELECT id FROM users.users WHERE id = %s FOR UPDATE", (load.user,))
        waiting = load.users.SuspendUser.future(users_pb2.SuspendUserRequest(id=load.user), timeout=LIMIT)
        blocked = (
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND now() - query_start > interval '4 s'"
        )
        eventually(lambda: site.run(blocked), LIMIT)
        locking.rollback()
        waiting.result()
    load.admin.ListSlowQueries(statements_pb2.ListSlowQueriesRequest(page_size=1), timeout=LIMIT)
    yield


@contextmanager
def no_right_to_notify(site: Site, load: Load) -> Iterator[None]:
    """The role of a domain lost the right to notify."""
    user = users_pb2.User(id=load.user, display_name="Ann")

    def write() -> None:
        request = users_pb2.UpdateUserRequest(user=user, request_id=str(uuid.uuid4()))
        load.users.UpdateUser(request, timeout=LIMIT)

    site.run("REVOKE EXECUTE ON FUNCTION pg_catalog.pg_notify FROM PUBLIC, kronos_users")
    try:
        with again_and_again(write):
            yield
    finally:
        site.run("GRANT EXECUTE ON FUNCTION pg_catalog.pg_notify TO kronos_users")


@contextmanager
def many_sessions(site: Site, load: Load) -> Iterator[None]:
    """Somebody opens sessions without end."""
    with ExitStack() as stack:
        while site.run("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")[0][0] < 175:
            stack.enter_context(psycopg.connect(site.postgres.dsn))
        yield


@contextmanager
def spent_transactions(site: Site, load: Load) -> Iterator[None]:
    """Many transactions, and nothing that freezes rows."""
    with again_and_again(lambda: [site.run("SELECT pg_current_xact_id()") for _ in range(50)], pause=0.0):
        yield


@contextmanager
def a_standby_that_lags(site: Site, load: Load) -> Iterator[None]:
    """A real standby that replays each commit half a minute late."""
    standby = EmbeddedPostgres(site.folder / "standby", {"fsync": "off", "recovery_min_apply_delay": "30s"})
    standby.directory.mkdir()
    shutil.copy(site.postgres.directory / "password", standby.directory)
    command = [site.postgres.bin_dir / "pg_basebackup", "-d", site.postgres.dsn, "-D", standby.data, "-R", "-N"]
    subprocess.run([*command, "-c", "fast"], check=True, capture_output=True)
    standby.start()
    try:
        with again_and_again(load.round, pause=2.0):
            yield
    finally:
        standby.stop("immediate")
        shutil.rmtree(standby.directory)


@contextmanager
def tokens_that_cannot_be_removed(site: Site, load: Load) -> Iterator[None]:
    """Tokens are over for long, and a trigger keeps them from being removed."""
    tokens.issue(load.tokens)
    site.run("CREATE FUNCTION public.keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    site.run("CREATE TRIGGER keep BEFORE DELETE ON tokens.token FOR EACH ROW EXECUTE FUNCTION public.keep()")
    site.run("UPDATE tokens.token SET purge_time = now() - interval '2 days'")
    try:
        yield
    finally:
        site.run("DROP FUNCTION public.keep CASCADE")


@contextmanager
def replication_refused(site: Site) -> Iterator[None]:
    """Replication is refused by pg_hba.conf: nobody receives WAL, and no backup comes about."""
    file = site.postgres.data / "pg_hba.conf"
    before = file.read_text(encoding="utf-8")
    file.write_text("local replication all reject\n" + before, encoding="utf-8")
    site.run("SELECT pg_reload_conf()")
    site.run("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
    try:
        yield
    finally:
        file.write_text(before, encoding="utf-8")
        site.run("SELECT pg_reload_conf()")


@contextmanager
def no_way_for_the_archive(site: Site, load: Load) -> Iterator[None]:
    """Replication is refused, WAL is written, and a backup is asked for."""
    request = backups_pb2.CreateBackupRequest(request_id=str(uuid.uuid4()))
    with replication_refused(site):
        with suppress(grpc.RpcError):
            list(load.admin.CreateBackup(request, timeout=LIMIT))
        with again_and_again(lambda: site.run("SELECT pg_switch_wal() FROM pg_current_xact_id()")):
            yield


@contextmanager
def a_segment_is_gone(site: Site, load: Load) -> Iterator[None]:
    """Somebody removes one segment from the middle of the archive."""

    def segments() -> list[Path]:
        """Those that are whole; parts of them are removed when these are there."""
        names = sorted((site.backups / "wal").rglob("*-*"))
        ends = [(path, *path.name.split("-")) for path in names if not path.name.startswith(".")]
        return [path for path, start, end in ends if int(end, 16) - int(start, 16) == SEGMENT]

    before = len(segments())
    for _ in range(4):
        site.run("SELECT pg_switch_wal() FROM pg_current_xact_id()")
    eventually(lambda: len(segments()) >= before + 3, LIMIT, segments)
    gone = segments()[-2]
    kept = gone.read_bytes()
    gone.unlink()
    yield
    gone.write_bytes(kept)


@contextmanager
def no_backups(site: Site, load: Load) -> Iterator[None]:
    """The destination was emptied, and replication is refused: else a new backup would be made at once."""
    aside = site.folder / "aside"
    with replication_refused(site):
        site.backups.rename(aside)
        yield
        shutil.rmtree(site.backups, ignore_errors=True)
        aside.rename(site.backups)


@contextmanager
def nothing(site: Site, load: Load) -> Iterator[None]:
    """Nothing is done: time goes by, and memory is what it is."""
    yield


def check(site: Site, load: Load, fault: Fault) -> None:
    """Inject a fault; fail unless none of its alerts fires before and all of them do over it."""
    site.is_silent(*fault.alerts)
    site.prometheus.limit(**fault.limits)
    try:
        with fault.inject(site, load):
            site.fires(*fault.alerts)
    finally:
        site.prometheus.limit()
