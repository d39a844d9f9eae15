"""The rows of the users domain."""

from __future__ import annotations

import random
import statistics
import sys
import time
import uuid
from collections.abc import Iterator

from kronos.users.v1 import users_pb2 as pb

from benchmarks import permissions
from benchmarks.load import Outcome
from benchmarks.stand import Row, Stand, at_least, at_most, echo, run_load, settle, stand

_USERS = 100_000
_BATCH = 1_000
_ROUNDS = 3
_PAGE = 100
# The users that are asked for: as many as a process may be busy with at a time.
_ACTIVE = 8_000
_GET = "/kronos.users.v1.UsersService/GetUser"
_BATCH_GET = "/kronos.users.v1.UsersService/BatchGetUsers"


def rows() -> Iterator[Row]:
    """Measure."""
    with stand() as on:
        ids, seconds = _create(on)
        yield Row("users: BatchCreateUsers of 1,000", _USERS / seconds, "users/s")
        gets, floors, answer = _get_beside_echo(on, ids)
        best = statistics.median(outcome.calls_per_second for outcome in gets)
        floor = statistics.median(floors)
        yield at_least("users: GetUser by id, 64 in flight, 1 process", best, "calls/s", floor, 0.4)
        yield Row("users: GetUser by id, p50", statistics.median(outcome.p50_ms for outcome in gets), "ms")
        yield Row("users: GetUser by id, p99", statistics.median(outcome.p99_ms for outcome in gets), "ms")
        yield Row("users: generator's own processor share", gets[-1].generator_cpu, f"cores ({answer} byte answers)")
        yield at_least("users: BatchGetUsers of 100, 16 in flight", _batches(on, ids[:_ACTIVE]), "users/s", best, 20)
        yield Row("users: BatchGetUsers of 100, of all 100,000 users", _batches(on, ids), "users/s")
        first, last = _pages(on, ids[0])
        yield at_most("users: ListUsers, page 1,000 beside page 1, p50", last, "ms", first, 1.3)
        yield from _memory(on, ids)
    yield from permissions.rows()


def _create(on: Stand) -> tuple[list[str], float]:
    ids: list[str] = []
    begin = time.perf_counter()
    for start in range(0, _USERS, _BATCH):
        users = [
            pb.User(username=f"user{number}", email=f"user{number}@example.org", phone=f"+1555{number:07}")
            for number in range(start, start + _BATCH)
        ]
        request = pb.BatchCreateUsersRequest(users=users, request_id=str(uuid.uuid4()))
        ids += [user.id for user in on.users.BatchCreateUsers(request, metadata=on.metadata).users]
        print(f"\rcreating users: {len(ids):,} of {_USERS:,}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return ids, time.perf_counter() - begin


def _get_beside_echo(on: Stand, ids: list[str]) -> tuple[list[Outcome], list[float], int]:
    """Load GetUser and the floor in turn, so that both see the same weather."""
    requests = [pb.GetUserRequest(id=user_id).SerializeToString() for user_id in ids[:_ACTIVE]]
    answer = on.users.GetUser(pb.GetUserRequest(id=ids[0]), metadata=on.metadata).ByteSize()
    gets, floors = [], []
    with echo(on.settings.worker_threads, answer) as target:
        for _ in range(_ROUNDS):
            settle()
            floors.append(run_load(target, "/bench.Echo/Echo", requests, 4.0, 64, on.metadata).calls_per_second)
            settle()
            gets.append(on.load(_GET, requests))
    return gets, floors, answer


def _batches(on: Stand, ids: list[str]) -> float:
    """Return the users a second of BatchGetUsers, over `ids` in an order that is not theirs."""
    shuffled = random.Random(1).sample(ids, len(ids))
    requests = [pb.BatchGetUsersRequest(ids=shuffled[i : i + 100]).SerializeToString() for i in range(0, len(ids), 100)]
    return statistics.median(on.load(_BATCH_GET, requests, in_flight=16).calls_per_second for _ in range(_ROUNDS)) * 100


def _pages(on: Stand, any_id: str) -> tuple[float, float]:
    """Return the median milliseconds of the first page and of the thousandth, both read: a change makes copies old."""
    change = pb.UpdateUserRequest(user=pb.User(id=any_id, display_name="another"))
    token = ""
    for _ in range(_USERS // _PAGE - 1):
        request = pb.ListUsersRequest(page_size=_PAGE, page_token=token)
        token = on.users.ListUsers(request, metadata=on.metadata).next_page_token
    first, last = pb.ListUsersRequest(page_size=_PAGE), pb.ListUsersRequest(page_size=_PAGE, page_token=token)
    times: dict[str, list[float]] = {"": [], token: []}
    for _ in range(200):
        for request in (first, last):
            on.users.UpdateUser(change, metadata=on.metadata)
            begin = time.perf_counter()
            on.users.ListUsers(request, metadata=on.metadata)
            times[request.page_token].append((time.perf_counter() - begin) * 1000)
    return statistics.median(times[""]), statistics.median(times[token])


def _memory(on: Stand, ids: list[str]) -> Iterator[Row]:
    requests = [pb.GetUserRequest(id=user_id).SerializeToString() for user_id in ids[:_ACTIVE]]
    before = on.resident_megabytes()
    calls = 0.0
    while calls < 200_000:
        calls += on.load(_GET, requests, seconds=10.0).calls_per_second * 10
        print(f"\rmemory over calls: {int(calls):,}", end="", file=sys.stderr)
    print(file=sys.stderr)
    after = on.resident_megabytes()
    yield Row("users: resident memory of a serving process", after, "MB", bar="≤ 150 MB", met=after <= 150)
    yield at_most("users: resident memory after 200,000 calls more", after, "MB", before, 1.05)
