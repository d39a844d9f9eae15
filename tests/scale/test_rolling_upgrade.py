"""The release before becomes this one under load, one process after the other: no call fails, nothing is lost."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from kronos.cache.v1 import cache_pb2 as cache_pb
from kronos.cache.v1.cache_pb2_grpc import CacheServiceStub
from kronos.logs.v1 import logs_pb2 as logs_pb
from kronos.logs.v1.logs_pb2_grpc import LogsServiceStub
from kronos.messages.v1 import messages_pb2 as messages_pb
from kronos.messages.v1.messages_pb2_grpc import MessagesServiceStub
from kronos.routes.v1 import routes_pb2 as routes_pb
from kronos.routes.v1.routes_pb2_grpc import RoutesServiceStub
from kronos.users.v1 import users_pb2 as users_pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from benchmarks.ports import free_address
from kronos_db.runtime.crypto.master_key import FileMasterKeys, create_master_key_file
from kronos_db.runtime.interceptors.authentication import hash_token, new_token
from tests.conftest import lacking
from tests.parts.eventually import eventually
from tests.parts.release import LIMIT, ROOT, Process, Release, release_before, take_out
from tests.parts.serving import ROLE_SECRET
from tests.parts.watching import SOAK

# How often all processes are replaced, and calls of each kind that are answered before the next one is.
ROUNDS = 6 if SOAK else 1
CALLS = 200 if SOAK else 8
# Seconds between two calls of a caller: processes that start need the machine too.
PACE = 0.0 if SOAK else 0.05
DEADLINE = 30.0


class Load:
    """Callers of five domains, who keep what was acknowledged; each write is looked for at once."""

    def __init__(self, addresses: Sequence[str], token: str) -> None:
        policy = json.loads(files("kronos").joinpath("service_config.json").read_text())
        policy["loadBalancingConfig"] = [{"round_robin": {}}]
        options = [("grpc.service_config", json.dumps(policy)), ("grpc.initial_reconnect_backoff_ms", 100)]
        self._channel = grpc.insecure_channel(f"ipv4:{','.join(addresses)}", options)
        self._named: dict[str, Any] = {"metadata": [("authorization", f"Bearer {token}")], "timeout": DEADLINE}
        self._users = UsersServiceStub(self._channel)
        self._messages = MessagesServiceStub(self._channel)
        self._logs = LogsServiceStub(self._channel)
        self._routes = RoutesServiceStub(self._channel)
        self._cache = CacheServiceStub(self._channel)
        self._stop = threading.Event()
        self.done: Counter[str] = Counter()
        self.failed: list[str] = []

    def prepare(self) -> None:
        """Make what the callers work on."""
        self._ask(self._messages.CreateQueue, messages_pb.CreateQueueRequest(queue=messages_pb.Queue(name="rolling")))
        quota = routes_pb.Quota(name="rolling", calendar=routes_pb.CalendarRule(limit=10**9, unit=2))
        self._ask(self._routes.CreateQuota, routes_pb.CreateQuotaRequest(quota=quota))
        namespace = cache_pb.Namespace(name="rolling", storage=cache_pb.NAMESPACE_STORAGE_DURABLE)
        self._ask(self._cache.CreateNamespace, cache_pb.CreateNamespaceRequest(namespace=namespace))

    def start(self, threads: ThreadPoolExecutor) -> list[Future[None]]:
        """Call all the time."""
        works = (self._create, self._enqueue, self._log, self._consume, self._put)
        return [threads.submit(self._go_on, work) for work in works]

    def more(self) -> None:
        """Wait until each kind of caller has done some more."""
        before = self.done.copy()
        kinds = ("user", "message", "log", "quota", "entry")
        eventually(
            lambda: self.failed or all(self.done[kind] >= before[kind] + CALLS for kind in kinds),
            LIMIT,
            lambda: (self.done, before),
        )

    def stop(self) -> None:
        """End calling."""
        self._stop.set()

    def close(self) -> None:
        """Let go of the connections."""
        self._channel.close()

    def check(self) -> None:
        """Compare what there is with what was acknowledged."""
        listed = self._pages()
        assert len(listed) == len(set(listed)) == self.done["user"]
        stats = messages_pb.GetQueueStatsRequest(queue="rolling")
        eventually(
            lambda: self._ask(self._messages.GetQueueStats, stats).ready == self.done["message"],
            LIMIT,
            lambda: (self._ask(self._messages.GetQueueStats, stats), self.done),
        )
        assert self._ask(self._logs.GetLogStats, logs_pb.GetLogStatsRequest()).records == self.done["log"]
        usage = routes_pb.GetQuotaUsageRequest(quota="rolling")
        assert self._ask(self._routes.GetQuotaUsage, usage).used == self.done["quota"]

    def _ask(self, method: Any, request: Any) -> Any:
        return method(request, **self._named)

    def _go_on(self, work: Callable[[int], None]) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            try:
                work(number)
            except grpc.RpcError as error:
                self.failed.append(str(error))
            self._stop.wait(PACE)

    def _create(self, number: int) -> None:
        user = users_pb.User(username=f"rolling-{number}")
        request = users_pb.CreateUserRequest(user=user, request_id=str(uuid4()))
        made = self._ask(self._users.CreateUser, request).user
        self.done["user"] += 1
        changed = users_pb.User(id=made.id, display_name=f"changed {number}")
        request = users_pb.UpdateUserRequest(user=changed, request_id=str(uuid4()))
        self._ask(self._users.UpdateUser, request)
        for _ in range(3):
            found = self._ask(self._users.GetUser, users_pb.GetUserRequest(id=made.id)).user
            if found.display_name != f"changed {number}":
                self.failed.append(f"old answer: {found}")

    def _enqueue(self, number: int) -> None:
        message = messages_pb.Message(payload=str(number).encode())
        request = messages_pb.EnqueueMessagesRequest(queue="rolling", messages=[message], request_id=str(uuid4()))
        self._ask(self._messages.EnqueueMessages, request)
        self.done["message"] += 1

    def _log(self, number: int) -> None:
        record = logs_pb.LogRecord(body=logs_pb.Value(string_value=str(number)))
        record.time.GetCurrentTime()
        origin = logs_pb.Origin(service="rolling")
        request = logs_pb.WriteLogsRequest(origin=origin, records=[record], request_id=str(uuid4()))
        self._ask(self._logs.WriteLogs, request)
        self.done["log"] += 1

    def _consume(self, _number: int) -> None:
        request = routes_pb.ConsumeQuotaRequest(quota="rolling", request_id=str(uuid4()))
        if not self._ask(self._routes.ConsumeQuota, request).allowed:
            self.failed.append("a quota with room denied")
        self.done["quota"] += 1

    def _put(self, number: int) -> None:
        entry = cache_pb.EntryWrite(key="key", value=str(number).encode())
        request = cache_pb.PutEntriesRequest(namespace="rolling", entries=[entry], request_id=str(uuid4()))
        self._ask(self._cache.PutEntries, request)
        found = self._ask(self._cache.GetEntries, cache_pb.GetEntriesRequest(namespace="rolling", keys=["key"]))
        if found.entries[0].value != str(number).encode():
            self.failed.append(f"old answer: {found}")
        self.done["entry"] += 1

    def _pages(self) -> list[str]:
        found: list[str] = []
        request = users_pb.ListUsersRequest(page_size=1000)
        while True:
            page = self._ask(self._users.ListUsers, request)
            found += [user.username for user in page.users]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


def settings(folder: Path, dsn: str) -> tuple[dict[str, str], str]:
    """Return an environment that every release understands, and the token of its one caller."""
    create_master_key_file(folder / "master.key")
    token = new_token()
    hashed = hash_token(token, FileMasterKeys(folder / "master.key"))
    (folder / "access.toml").write_text(f'[callers.operator]\ntokens = ["{hashed}"]\nallow = ["*"]\n')
    # That of all tests: roles belong to the whole PostgreSQL.
    (folder / "role.secret").write_text(ROLE_SECRET)
    found = {
        "POSTGRES_DSN": dsn,
        "MASTER_KEY_FILE": folder / "master.key",
        "ACCESS_FILE": folder / "access.toml",
        "POSTGRES_ROLE_SECRET_FILE": folder / "role.secret",
        "PROCESSES": 1,
        "LOG_LEVEL": "error",
        "CPU_AFFINITY": "off",
        "DRAIN_PAUSE": 0.2,
    }
    return {f"KRONOS_DB_{name}": str(value) for name, value in found.items()}, token


@pytest.fixture
def releases(empty_database: str, tmp_path: Path) -> tuple[Release, Release, str]:
    """The release before, this one, and the token that both know."""
    revision = release_before()
    if revision is None:
        lacking("There is no release before: this tree has no history, or not enough of it.")
    old = tmp_path / "before"
    old.mkdir()
    take_out(revision, old)
    environment, token = settings(tmp_path, empty_database)
    return Release(old, environment), Release(ROOT, environment), token


@pytest.mark.soak
@pytest.mark.timeout(LIMIT * (4 + 4 * ROUNDS))
def test_no_call_fails_while_processes_are_replaced_and_the_schema_migrates(
    releases: tuple[Release, Release, str], empty_database: str
) -> None:
    before, now, token = releases
    assert before.migrate()
    places = [(free_address(), free_address()) for _ in range(2)]
    running: list[Process] = [before.serve(*place) for place in places]
    load = Load([grpc_address for grpc_address, _ in places], token)
    try:
        for process in running:
            process.wait()
        load.prepare()
        with ThreadPoolExecutor(5) as threads:
            jobs = load.start(threads)
            try:
                load.more()
                assert now.migrate(), "nothing was migrated under load"
                load.more()
                for _ in range(ROUNDS):
                    _replace(running, now, places, load)
            finally:
                load.stop()
            for job in jobs:
                job.result(DEADLINE)
        assert load.failed == []
        load.check()
        _the_next_release_migrates(empty_database)
        assert all(process.is_ready() for process in running), "the next upgrade would take all processes out at once"
    finally:
        load.close()
        for process in running:
            process.kill()


def _the_next_release_migrates(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("INSERT INTO users.schema_migration VALUES ('users/0999_later', '')")


def _replace(running: list[Process], release: Release, places: Sequence[tuple[str, str]], load: Load) -> None:
    """Drain one process after the other, and have the release serve in its place before the next one is."""
    for number, place in enumerate(places):
        running[number].drain()
        load.more()
        running[number] = release.serve(*place)
        running[number].wait()
        load.more()
