"""The rows of streams of changes: what 2,000 idle ones cost, and how soon a change is told."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from kronos.users.v1 import users_pb2 as pb
from kronos.users.v1.users_pb2_grpc import UsersServiceStub

from benchmarks.stand import Row, Stand, at_least, settle, stand

_STREAMS = 2_000
_CONNECTIONS = 4
_ROUNDS = 3
_USERS = 1_000
_CHANGES = 200
_GET = "/kronos.users.v1.UsersService/GetUser"


def rows() -> Iterator[Row]:
    """Measure."""
    with stand(caller_streams=2 * _STREAMS) as on:
        users = [pb.User(username=f"user{number}") for number in range(_USERS)]
        created = on.users.BatchCreateUsers(pb.BatchCreateUsersRequest(users=users), metadata=on.metadata).users
        requests = [pb.GetUserRequest(id=user.id).SerializeToString() for user in created]
        yield from _beside(on, requests)
        yield Row("streams: from a write's answer to its change, p50", _delay(on, created[0].id), "ms")


def _beside(on: Stand, requests: list[bytes]) -> Iterator[Row]:
    """Load GetUser with and without idle streams in turn, and look at memory and threads."""
    with _watching(on, 50):
        # What the first streams and calls of a process set up is not what each of them costs.
        on.load(_GET, requests)
    without, beside, memory, threads = [], [], [], []
    for _ in range(_ROUNDS):
        settle()
        without.append(on.load(_GET, requests).calls_per_second)
        before = on.resident_megabytes(), _threads(on)
        with _watching(on, _STREAMS):
            settle()
            memory.append((on.resident_megabytes() - before[0]) * 1024 / _STREAMS)
            threads.append(_threads(on) - before[1])
            beside.append(on.load(_GET, requests).calls_per_second)
    # Of the first round: later ones find memory that the one before has freed.
    yield Row("streams: memory of an idle watch stream", memory[0], "KB", bar="≤ 60 KB", met=memory[0] <= 60)
    yield Row(f"streams: threads added by {_STREAMS:,} idle streams", max(threads), "", bar="0", met=max(threads) <= 0)
    name = f"streams: GetUser beside {_STREAMS:,} idle streams, beside none"
    yield at_least(name, statistics.median(beside), "calls/s", statistics.median(without), 0.9)


def _delay(on: Stand, user_id: str) -> float:
    """Return the median milliseconds from a write's answer to the change on a stream."""
    delays = []
    with _watching(on, 1) as (stream,):
        for number in range(_CHANGES):
            request = pb.UpdateUserRequest(user=pb.User(id=user_id, display_name=f"{number}"))
            on.users.UpdateUser(request, metadata=on.metadata)
            answered = time.perf_counter()
            next(stream)
            delays.append((time.perf_counter() - answered) * 1000)
    return statistics.median(delays)


@contextmanager
def _watching(on: Stand, count: int) -> Iterator[list[Any]]:
    """Open so many streams, each past its first message."""
    local = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(on.settings.grpc_listen, local) for _ in range(_CONNECTIONS)]
    stubs = [UsersServiceStub(channel) for channel in channels]
    streams = [
        stubs[number % _CONNECTIONS].WatchUsers(pb.WatchUsersRequest(), metadata=on.metadata) for number in range(count)
    ]
    try:
        for stream in streams:
            next(stream)
        yield streams
    finally:
        for channel in channels:
            channel.close()


def _threads(on: Stand) -> int:
    """Return how many threads the serving processes have."""
    return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in on.pids)
