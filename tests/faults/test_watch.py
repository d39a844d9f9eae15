"""A serving process is killed under those who watch: they go on at the other one, with every change once."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from benchmarks.stand import free_address
from kronos_db import schemas
from kronos_db.config import Settings, environment_of
from tests.parts.commit_order import Write, assert_in_commit_order
from tests.parts.eventually import eventually
from tests.parts.serving import CHEAP, make_secrets
from tests.parts.watching import LIMIT, SOAK, Watcher, write_users

_START_LIMIT = 60.0  # seconds


class Pair:
    """Two serving processes on one port, under the supervisor that starts again what dies."""

    def __init__(self, folder: Path, dsn: str) -> None:
        tokens: dict[str, str] = {}
        listen = {"grpc_listen": free_address(), "ops_listen": free_address()}
        secrets = make_secrets(folder, tokens)
        self._settings = Settings.model_validate({**listen, "postgres_dsn": dsn, "processes": 2, **secrets, **CHEAP})
        schemas.migrate(self._settings, lambda _domain, _name: None)
        environment = {**os.environ, **environment_of(self._settings)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kronos_db"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._bearer = f"Bearer {tokens['operator']}"
        self._channels: list[grpc.Channel] = []
        self._numbers = itertools.count()

    def users(self) -> UsersServiceStub:
        """A stub with a connection of its own: the kernel chooses the process."""
        channel = grpc.insecure_channel(
            self._settings.grpc_listen,
            [
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.primary_user_agent", f"test-{next(self._numbers)}"),
                ("grpc.max_reconnect_backoff_ms", 200),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
            ],
        )
        self._channels.append(channel)
        return UsersServiceStub(grpc.intercept_channel(channel, _Bearer(self._bearer)))

    def serving(self) -> list[psutil.Process]:
        """The processes that serve."""
        return psutil.Process(self._process.pid).children()

    def stop(self) -> None:
        for channel in self._channels:
            channel.close()
        self._process.terminate()
        self._process.wait(_START_LIMIT)


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Adds a bearer token to every call, and waits for a connection."""

    def __init__(self, bearer: str) -> None:
        self._bearer = bearer

    def intercept_unary_unary(self, continuation, client_call_details, request):  # type: ignore[no-untyped-def]
        return continuation(self._ready(client_call_details), request)

    def intercept_unary_stream(self, continuation, client_call_details, request):  # type: ignore[no-untyped-def]
        return continuation(self._ready(client_call_details), request)

    def _ready(self, details):  # type: ignore[no-untyped-def]
        return details._replace(metadata=[("authorization", self._bearer)], wait_for_ready=True)


@pytest.fixture
def pair(database: str, tmp_path: Path) -> Iterator[Pair]:
    running = Pair(tmp_path, database)
    yield running
    running.stop()


@pytest.mark.soak
@pytest.mark.timeout(LIMIT + 120)
def test_kill_9_of_a_serving_process(pair: Pair) -> None:
    """Eight writers, four watchers of which two also leave by themselves, and each process killed in turn."""
    count = 5_000 if SOAK else 150
    kills = 10 if SOAK else 2
    users = pair.users()
    created = users.BatchCreateUsers(
        pb.BatchCreateUsersRequest(users=[pb.User(username=f"user{number}") for number in range(10)]), timeout=LIMIT
    )
    ids = [user.id for user in created.users]
    watchers = [Watcher(pair.users) for _ in range(4)]
    for watcher in watchers:
        watcher.begin()
    patience = [lambda: 8 * count, lambda: random.randint(1, 200)] * 2

    with ThreadPoolExecutor(12) as threads:
        reading = [
            threads.submit(watcher.watch, 8 * count, each) for watcher, each in zip(watchers, patience, strict=True)
        ]
        writing = [threads.submit(write_users, pair.users(), ids, count, seed) for seed in range(8)]
        for kill in range(1, kills + 1):
            _kill_one(pair, watchers[0], 8 * count * kill // (kills + 1))
        writes: list[Write] = [write for writer in writing for write in writer.result(LIMIT)]
        for reader in reading:
            reader.result(LIMIT)

    for watcher in watchers:
        assert_in_commit_order(watcher.told, writes)


def _kill_one(pair: Pair, watcher: Watcher, told: int) -> None:
    """Kill one of two processes when so many changes were told."""
    eventually(lambda: len(watcher.told) >= told and len(pair.serving()) == 2, LIMIT, lambda: len(watcher.told))
    random.choice(pair.serving()).kill()
