"""A serving process is killed under those who watch: they go on at the other one, with every change once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from tests.parts.commit_order import Write, assert_in_commit_order
from tests.parts.eventually import eventually
from tests.parts.fleet import Fleet
from tests.parts.watching import LIMIT, SOAK, Watcher, write_users

# As operations.md advises: a new connection may be given to the dead process in its last moment.
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100))


class Callers:
    """Makes stubs, each with a connection of its own: the kernel chooses the process."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._channels: list[grpc.Channel] = []

    def __call__(self) -> UsersServiceStub:
        channel = grpc.insecure_channel(self._fleet.settings.grpc_listen, _OPTIONS)
        self._channels.append(channel)
        return UsersServiceStub(grpc.intercept_channel(channel, Bearer(self._fleet.bearer)))

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


class Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Adds a bearer token to every call, and waits for a connection."""

    def __init__(self, bearer: tuple[tuple[str, str | bytes], ...]) -> None:
        self._bearer = bearer

    def intercept_unary_unary(self, continuation, client_call_details, request):  # type: ignore[no-untyped-def]
        return continuation(self._ready(client_call_details), request)

    def intercept_unary_stream(self, continuation, client_call_details, request):  # type: ignore[no-untyped-def]
        return continuation(self._ready(client_call_details), request)

    def _ready(self, details):  # type: ignore[no-untyped-def]
        return details._replace(metadata=self._bearer, wait_for_ready=True)


@pytest.fixture
def callers(fleet: Fleet) -> Iterator[Callers]:
    made = Callers(fleet)
    yield made
    made.close()


@pytest.mark.soak
@pytest.mark.timeout(LIMIT + 120)
def test_kill_9_of_a_serving_process(fleet: Fleet, callers: Callers) -> None:
    """Eight writers, four watchers of which two also leave by themselves, and each process killed in turn."""
    count = 5_000 if SOAK else 150
    kills = 10 if SOAK else 2
    users = callers()
    created = users.BatchCreateUsers(
        pb.BatchCreateUsersRequest(users=[pb.User(username=f"user{number}") for number in range(10)]), timeout=LIMIT
    )
    ids = [user.id for user in created.users]
    watchers = [Watcher(callers) for _ in range(4)]
    for watcher in watchers:
        watcher.begin()
    patience = [lambda: 8 * count, lambda: random.randint(1, 200)] * 2

    with ThreadPoolExecutor(12) as threads:
        reading = [
            threads.submit(watcher.watch, 8 * count, each) for watcher, each in zip(watchers, patience, strict=True)
        ]
        writing = [threads.submit(write_users, callers(), ids, count, seed) for seed in range(8)]
        for kill in range(1, kills + 1):
            _kill_one(fleet, watchers[0], 8 * count * kill // (kills + 1))
        writes: list[Write] = [write for writer in writing for write in writer.result(LIMIT)]
        for reader in reading:
            reader.result(LIMIT)

    for watcher in watchers:
        assert_in_commit_order(watcher.told, writes)


def _kill_one(fleet: Fleet, watcher: Watcher, told: int) -> None:
    """Kill one of two processes when so many changes were told."""
    eventually(lambda: len(watcher.told) >= told and len(fleet.children()) == 2, LIMIT, lambda: len(watcher.told))
    random.choice(fleet.children()).kill()
