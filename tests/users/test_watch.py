"""WatchUsers through real gRPC: every change once and in commit order, however the streams come and go."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from kronos.users.v1 import users_pb2 as pb

from kronos_db import server
from kronos_db.runtime.database.changes import Position
from kronos_db.runtime.feed.feed import Pace
from kronos_db.runtime.feed.feeds import Feeds
from tests.parts import threads
from tests.parts.commit_order import Write, assert_in_commit_order
from tests.parts.eventually import eventually
from tests.parts.refusal import refused
from tests.parts.serving import Serving
from tests.parts.watching import LIMIT, SOAK, Watcher, write_users
from tests.users import population
from tests.users.population import create


@pytest.fixture
def watch(serving: Serving) -> Iterator[Callable[..., Any]]:
    """Begin a stream; it is cancelled after the test."""
    streams: list[Any] = []

    def begin(request: pb.WatchUsersRequest | None = None, on: Serving = serving, caller: str = "operator") -> Any:
        streams.append(on.users(caller).WatchUsers(request or pb.WatchUsersRequest(), timeout=LIMIT))
        return streams[-1]

    yield begin
    for stream in streams:
        stream.cancel()


def test_the_life_of_a_user(serving: Serving, watch: Callable[..., Any]) -> None:
    users = serving.users()
    user = create(users)
    stream = watch(pb.WatchUsersRequest(user_ids=[user.id.upper()]))
    assert not next(stream).HasField("change")
    update = pb.User(id=user.id, display_name="B")
    etags = [
        users.UpdateUser(pb.UpdateUserRequest(user=update, update_mask=FieldMask(paths=["display_name"]))).user.etag,
        users.SuspendUser(pb.SuspendUserRequest(id=user.id)).user.etag,
        users.ReactivateUser(pb.ReactivateUserRequest(id=user.id)).user.etag,
        users.SetPassword(pb.SetPasswordRequest(id=user.id, password="open sesame")).user.etag,
        users.DeleteUser(pb.DeleteUserRequest(id=user.id)).user.etag,
        users.UndeleteUser(pb.UndeleteUserRequest(id=user.id)).user.etag,
    ]
    users.EraseUser(pb.EraseUserRequest(id=user.id))

    changes = [next(stream).change for _ in range(7)]

    assert [pb.UserEvent.Name(change.event) for change in changes] == [
        "USER_EVENT_UPDATED",
        "USER_EVENT_SUSPENDED",
        "USER_EVENT_REACTIVATED",
        "USER_EVENT_PASSWORD_SET",
        "USER_EVENT_DELETED",
        "USER_EVENT_UNDELETED",
        "USER_EVENT_ERASED",
    ]
    assert {change.user_id for change in changes} == {user.id}
    assert [change.etag for change in changes[:6]] == etags
    times = [change.change_time.ToNanoseconds() for change in changes]
    assert times == sorted(times)
    assert abs(times[0] / 1e9 - time.time()) < 60


def test_a_new_user_is_told_without_its_names(serving: Serving, watch: Callable[..., Any]) -> None:
    stream = watch()
    next(stream)
    user = create(serving.users())

    told = next(message for message in stream if message.change.user_id == user.id)

    assert told.change.event == pb.USER_EVENT_CREATED
    for name in (user.username, user.email, user.phone, user.display_name):
        assert name.encode() not in told.SerializeToString()


def test_it_tells_what_was_acknowledged_after_its_first_message(serving: Serving, watch: Callable[..., Any]) -> None:
    user = create(serving.users())
    for _ in range(20):
        stream = watch(pb.WatchUsersRequest(user_ids=[user.id]))
        next(stream)
        written = write_users(serving.users(), [user.id], 1, seed=1)[0]
        assert int(next(stream).change.etag) == written.version


@pytest.mark.parametrize("token", ["nonsense", "A" * 64])
def test_a_token_that_is_none(watch: Callable[..., Any], token: str) -> None:
    refusal = refused(lambda: next(watch(pb.WatchUsersRequest(resume_token=token))))

    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "RESUME_TOKEN_INVALID")
    assert list(refusal.fields) == ["resume_token"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.WatchUsersRequest(resume_token="A" * 8193), "resume_token"),
        (pb.WatchUsersRequest(user_ids=["x"]), "user_ids[0]"),
        (pb.WatchUsersRequest(user_ids=["01a207c9-538b-72bb-b4c6-24200d69a6a3"] * 101), "user_ids"),
    ],
    ids=["long token", "no id", "too many ids"],
)
def test_the_rules_of_the_contract(watch: Callable[..., Any], request_: pb.WatchUsersRequest, field: str) -> None:
    refusal = refused(lambda: next(watch(request_)))

    assert refusal.code == "INVALID_ARGUMENT"
    assert list(refusal.fields) == [field]


def test_who_may_not(watch: Callable[..., Any]) -> None:
    assert refused(lambda: next(watch(caller="reader"))).code == "PERMISSION_DENIED"


def test_changes_that_are_no_longer_kept(fresh_serving: Serving, database: str, watch: Callable[..., Any]) -> None:
    stream = watch(on=fresh_serving)
    token = next(stream).resume_token
    create(fresh_serving.users())
    log = fresh_serving.server._databases["users"]
    # Copies read the log too.
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("UPDATE users.change SET create_time = now() - interval '8 days'")
    assert log.purge_changes(7 * 86_400.0) == 1

    refusal = refused(lambda: list(watch(pb.WatchUsersRequest(resume_token=token), on=fresh_serving)))

    assert (refusal.code, refusal.reason) == ("OUT_OF_RANGE", "RESUME_TOKEN_EXPIRED")


def test_a_token_of_before_a_failover(fresh_serving: Serving, watch: Callable[..., Any]) -> None:
    feed = fresh_serving.server._feeds._feeds["users"]
    here = fresh_serving.server._databases["users"].position()
    token = feed._tokens.make(Position(here.seen, history=here.history[:-1] + "9"))

    refusal = refused(lambda: list(watch(pb.WatchUsersRequest(resume_token=token), on=fresh_serving)))

    assert (refusal.code, refusal.reason) == ("OUT_OF_RANGE", "RESUME_TOKEN_EXPIRED")


def _served(folder: Path, dsn: str, **changes: Any) -> Iterator[Serving]:
    running = Serving(folder, dsn, **changes)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def narrow(database: str, tmp_path: Path) -> Iterator[Serving]:
    yield from _served(tmp_path, database, caller_streams=2)


def test_one_caller_holds_so_many_streams(narrow: Serving, watch: Callable[..., Any]) -> None:
    first, second = watch(on=narrow), watch(on=narrow)
    next(first)
    next(second)

    refusal = refused(lambda: next(watch(on=narrow)))
    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS")
    assert refusal.retry
    first.cancel()
    streams = narrow.server._feeds.streams
    eventually(lambda: streams.held("operator") == 1)
    assert not next(watch(on=narrow)).HasField("change")


@pytest.fixture
def impatient(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    monkeypatch.setattr(server, "Feeds", partial(Feeds, pace=Pace(stall=0.3, poll=0.05)))
    yield from _served(tmp_path, database)


def test_who_reads_nothing_is_told_so(impatient: Serving) -> None:
    narrow_window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
    # A connection of its own: a window that is full holds up the others on it.
    with grpc.insecure_channel(
        impatient.server.grpc_address, [*narrow_window, ("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        watch = channel.unary_stream(
            "/kronos.users.v1.UsersService/WatchUsers",
            pb.WatchUsersRequest.SerializeToString,
            pb.WatchUsersResponse.FromString,
        )
        bearer = (("authorization", f"Bearer {impatient.tokens['operator']}"),)
        lazy = watch(pb.WatchUsersRequest(), metadata=bearer, timeout=LIMIT)
        token = next(lazy).resume_token
        users = [pb.User(username=population.unique()) for _ in range(500)]
        impatient.users().BatchCreateUsers(pb.BatchCreateUsersRequest(users=users))
        eventually(lambda: impatient.server._feeds.watched()["users"] == 0)

        tokens = [token]
        refusal = refused(lambda: tokens.extend(message.resume_token for message in lazy))
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "WATCH_TOO_SLOW")
        assert len(tokens) < 500
        # Whatever it had taken until then, it goes on behind it.
        token = tokens[-1]
        resumed = watch(pb.WatchUsersRequest(resume_token=token), metadata=bearer, timeout=LIMIT)
        assert not next(resumed).HasField("change")
        assert next(resumed).change.event == pb.USER_EVENT_CREATED
        resumed.cancel()


def test_idle_streams_hold_no_thread(serving: Serving, watch: Callable[..., Any]) -> None:
    next(watch())
    before = threads.held()

    streams = [watch() for _ in range(300)]
    for stream in streams:
        next(stream)

    assert threads.held() < before + threads.FEW
    user = create(serving.users())
    for stream in streams:
        assert next(message for message in stream if message.change.user_id == user.id).HasField("change")


def test_a_process_that_ends_says_so_and_does_not_wait_for_its_watchers(
    fresh_serving: Serving, watch: Callable[..., Any]
) -> None:
    streams = [watch(on=fresh_serving) for _ in range(20)]
    for stream in streams:
        next(stream)
    user = create(fresh_serving.users())
    tokens = {next(message for message in stream if message.HasField("change")).resume_token for stream in streams}
    began = time.monotonic()

    fresh_serving.server.stop()

    assert time.monotonic() - began < fresh_serving.settings.drain_timeout / 2
    for stream in streams:
        refusal = refused(lambda: next(stream))  # noqa: B023  # called at once
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    fresh_serving.restart()
    written = write_users(fresh_serving.users(), [user.id], 1, seed=1)[0]
    for token in tokens:
        resumed = watch(pb.WatchUsersRequest(resume_token=token), on=fresh_serving)
        next(resumed)
        assert int(next(resumed).change.etag) == written.version


@pytest.mark.soak
@pytest.mark.timeout(LIMIT + 60)
def test_concurrent_writers_and_watchers_that_come_and_go(serving: Serving) -> None:
    """Eight writers on twenty users; of three watchers one stays, and two leave all the time."""
    count = 12_500 if SOAK else 250
    ids = [create(serving.users()).id for _ in range(20)]
    watchers = [Watcher(serving.users, ids) for _ in range(3)]
    for watcher in watchers:
        watcher.begin()
    patience = [lambda: 8 * count, lambda: random.randint(1, 60), lambda: random.randint(1, count)]

    with ThreadPoolExecutor(11) as threads:
        reading = [
            threads.submit(watcher.watch, 8 * count, each) for watcher, each in zip(watchers, patience, strict=True)
        ]
        writing = [threads.submit(write_users, serving.users(), ids, count, seed) for seed in range(8)]
        writes: list[Write] = [write for writer in writing for write in writer.result()]
        for reader in reading:
            reader.result(LIMIT)

    assert watchers[1].came_back > 8 * count / 60
    for watcher in watchers:
        assert_in_commit_order(watcher.told, writes)
